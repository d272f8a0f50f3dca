// layers: memory,config,http,log,runtime,files,dns,tls,upstream,cache,contract,delivery,exchange,engine,features,cli,serve,process,admin
//! Imports between the layers of `src/` only go down.
//!
//! The line at the top is the order, lowest first; a layer is a folder or a file right below `src/`. docs/ARCHITECTURE.md
//! says what each one is for.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The order, from the first line of this file.
fn order() -> Vec<&'static str> {
    let first = include_str!("layers.rs").lines().next().unwrap_or_default();
    let list = first
        .strip_prefix("// layers: ")
        .expect("the first line is the order");
    list.split(',').collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The module path of a source file: `["upstream", "pool"]`.
fn module(file: &Path, src: &Path) -> Vec<String> {
    let relative = file.strip_prefix(src).unwrap().with_extension("");
    let mut path: Vec<String> = relative
        .components()
        .map(|c| c.as_os_str().to_string_lossy().into_owned())
        .collect();
    if path.last().is_some_and(|last| last == "mod") {
        path.pop();
    }
    path
}

fn is_test(file: &Path) -> bool {
    let name = file.to_string_lossy();
    name.ends_with("_tests.rs") || name.ends_with("/tests.rs") || name.contains("/tests/")
}

/// The text without comments and without what stands behind `#[cfg(test)]` at the end of a file.
fn production(text: &str) -> String {
    let mut out = String::new();
    let mut test = false;
    for line in text.lines() {
        if test && line.trim_start().starts_with("mod ") && line.ends_with('{') {
            break;
        }
        test = line.trim() == "#[cfg(test)]";
        out.push_str(line.split("//").next().unwrap_or_default());
        out.push('\n');
    }
    out
}

/// The first segments that paths beginning at `rest` name: one, or those of a list in braces.
fn heads(rest: &str) -> Vec<String> {
    let name = |s: &str| -> String {
        s.trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let Some(list) = rest.strip_prefix('{') else {
        return vec![name(rest)];
    };
    let (mut depth, mut begin, mut found) = (0, 0, Vec::new());
    for (i, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                found.push(name(&list[begin..i]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(name(&list[begin..i]));
                begin = i + 1;
            }
            _ => {}
        }
    }
    found
}

/// The layers that a file names: by `crate::…`, and by `super::…` that leaves its own layer.
fn named(text: &str, module: &[String]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        found.extend(heads(&text[at + "crate::".len()..]));
    }
    for (at, _) in text.match_indices("super::") {
        if text[..at].ends_with("super::") {
            continue;
        }
        let mut rest = &text[at..];
        let mut up = 0;
        while let Some(r) = rest.strip_prefix("super::") {
            rest = r;
            up += 1;
        }
        // a module inside of the file may be meant: what is one level less is then its own layer
        if up == module.len() {
            found.extend(heads(rest));
        }
    }
    found
}

/// Every import from a layer into a higher one, as `file -> layer`.
fn upward(src: &Path, order: &[&str]) -> Vec<String> {
    let rank = |layer: &str| order.iter().position(|l| *l == layer);
    let mut files = Vec::new();
    sources(src, &mut files);
    files.sort();
    let mut found = Vec::new();
    for file in files.iter().filter(|f| !is_test(f)) {
        let module = module(file, src);
        let Some(own) = module.first().filter(|m| *m != "lib" && *m != "main") else {
            continue;
        };
        let Some(own_rank) = rank(own) else {
            panic!("{own} has no place in the order: name it in the first line of tests/layers.rs");
        };
        let text = production(&fs::read_to_string(file).unwrap());
        for layer in named(&text, &module) {
            if rank(&layer).is_some_and(|r| r > own_rank) {
                found.push(format!("{} -> {layer}", module.join("::")));
            }
        }
    }
    found
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn imports_only_go_down() {
    let up = upward(&src(), &order());
    assert!(up.is_empty(), "imports that go up:\n{}", up.join("\n"));
}

#[test]
fn every_name_in_the_order_exists() {
    for layer in order() {
        let there = src().join(layer).is_dir() || src().join(format!("{layer}.rs")).is_file();
        assert!(there, "{layer} is named in the order and not there");
    }
}

/// The check itself: in the reverse order, imports go up.
#[test]
fn the_check_finds_what_goes_up() {
    let mut order = order();
    order.reverse();
    assert!(upward(&src(), &order).len() > 100);
    let module = ["upstream".to_owned(), "pool".to_owned()];
    let text = "use crate::{cache::Zone, log};\nuse super::super::engine::x;\nuse super::peer;";
    let found: Vec<_> = named(text, &module).into_iter().collect();
    assert_eq!(found, ["cache", "engine", "log"]);
    let text =
        production("use a; // crate::engine\n#[cfg(test)]\nmod tests {\n use crate::serve;\n}");
    assert!(named(&text, &module).is_empty());
}

//! docs/directives.md says what the modules declare, and docs/filters.md shows their order and the hooks of tests/outside.
//! `make docs` writes them.

use std::path::Path;

#[test]
fn directives_are_documented_as_they_are_declared() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/directives.md");
    let text = couloir::contract::directives_markdown(&couloir::features::builtin());
    if std::env::var_os("COULOIR_WRITE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("write docs/directives.md");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let difference = written.lines().zip(text.lines()).find(|(a, b)| a != b);
    assert!(
        written == text,
        "docs/directives.md is stale, run `make docs`; first difference: {difference:?}"
    );
}

/// What stands between `<!-- NAME -->` and `<!-- end -->` is made: the order of the modules, or a file as an example.
fn filled(text: &str, root: &Path) -> String {
    let mut out = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        let mark = line
            .strip_prefix("<!-- ")
            .and_then(|l| l.strip_suffix(" -->"));
        let Some(name) = mark.filter(|name| *name != "end") else {
            continue;
        };
        match name {
            "order" => out.push_str(&order()),
            file => {
                let code = std::fs::read_to_string(root.join(file)).expect(file);
                out.push_str(&format!("```rust\n{code}```\n"));
            }
        }
        lines
            .by_ref()
            .find(|l| *l == "<!-- end -->")
            .expect("<!-- end -->");
        out.push_str("<!-- end -->\n");
    }
    out
}

/// The modules that come with the program, as a table.
fn order() -> String {
    let registry = couloir::features::builtin();
    let mut text = String::from("| | module | directives |\n|---|---|---|\n");
    for (i, module) in registry.modules().enumerate() {
        let mut names: Vec<String> = module
            .directives()
            .iter()
            .filter(|d| !d.inert)
            .map(|d| format!("`{}`", d.name))
            .collect();
        names.dedup();
        let more = names.len().saturating_sub(4);
        names.truncate(4);
        let more = if more > 0 {
            format!(", {more} more")
        } else {
            String::new()
        };
        let directives = names.join(", ");
        text.push_str(&format!(
            "| {} | {} | {directives}{more} |\n",
            i + 1,
            module.name()
        ));
    }
    text
}

#[test]
fn the_guide_shows_the_order_and_the_tested_examples() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("docs/filters.md");
    let written = std::fs::read_to_string(&path).expect("docs/filters.md");
    let text = filled(&written, root);
    if std::env::var_os("COULOIR_WRITE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("write docs/filters.md");
        return;
    }
    let difference = written.lines().zip(text.lines()).find(|(a, b)| a != b);
    assert!(
        written == text,
        "docs/filters.md is stale, run `make docs`; first difference: {difference:?}"
    );
}

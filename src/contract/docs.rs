//! docs/directives.md, made from what the modules declare.

use super::{Args, DirectiveInfo, ModuleRegistry};
use std::fmt::Write;

/// The reference of all directives and variables of these modules, as Markdown.
pub fn directives_markdown(registry: &ModuleRegistry) -> String {
    let mut text = String::from(INTRODUCTION);
    for module in registry.modules() {
        let (mut directives, variables) = (module.directives(), module.variables());
        if directives.is_empty() && variables.is_empty() {
            continue;
        }
        // writing to a String cannot fail
        let _ = writeln!(text, "\n## {}", module.name());
        directives.sort_by_key(|d| d.name);
        for d in &directives {
            directive(&mut text, d);
        }
        if !variables.is_empty() {
            let mut names: Vec<String> = variables
                .iter()
                .map(|v| format!("`${}{}`", v.name, if v.prefix { "…" } else { "" }))
                .collect();
            names.sort();
            let _ = writeln!(text, "\nVariables: {}.", names.join(", "));
        }
    }
    let mut inert: Vec<&str> = registry
        .modules()
        .flat_map(|m| m.directives())
        .filter(|d| d.inert)
        .map(|d| d.name)
        .collect();
    inert.sort_unstable();
    inert.dedup();
    if !inert.is_empty() {
        let _ = writeln!(
            text,
            "\n## Accepted, without meaning here\n\n`{}`.",
            inert.join("`, `")
        );
    }
    text
}

const INTRODUCTION: &str = "\
# Directives

Made from the declarations of the modules; `make docs` writes it anew, and a test fails when it is stale.

A directive means what nginx documents for it. *Couloir's own* marks those that nginx does not have, *no meaning here*
those that are accepted so that configurations load unchanged, and logged once at `info`.
";

fn directive(text: &mut String, d: &DirectiveInfo) {
    let mark = match (d.own, d.inert) {
        (true, _) => " (Couloir's own)",
        (_, true) => " (no meaning here)",
        _ => "",
    };
    let _ = writeln!(text, "\n### {}{mark}\n\n{}\n", d.name, d.help);
    let _ = writeln!(
        text,
        "Context: {}. Parameters: {}.",
        d.place.names().join(", "),
        parameters(d.args)
    );
}

fn parameters(args: Args) -> String {
    let range = |a: u8, b: u8| {
        if a == b {
            a.to_string()
        } else {
            format!("{a} to {b}")
        }
    };
    match args {
        Args::None => "none".to_owned(),
        Args::Flag => "`on` or `off`".to_owned(),
        Args::Exactly(n) => n.to_string(),
        Args::Between(a, b) => range(a, b),
        Args::AtLeast(n) => format!("{n} or more"),
        Args::Block(0, 0) => "a block".to_owned(),
        Args::Block(a, b) => format!("{} and a block", range(a, b)),
    }
}

//! docs/directives.md says what the modules declare. `make docs` writes it.

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

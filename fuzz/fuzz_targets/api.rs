//! Bodies of the runtime API are one flat object or refused; a server that is kept in a state file comes back as it was.
#![no_main]

use couloir::config::{Disk, parse_command_line};
use couloir::features::api::parse_body;
use couloir::upstream::{ServerSpec, state_file};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|text: &[u8]| {
    let Ok(body) = parse_body(text) else {
        return;
    };
    assert!(body.values().all(|v| !v.is_object() && !v.is_array()));
    let word = |name: &str| {
        let word = body.get(name).and_then(|v| v.as_str()).unwrap_or("x");
        // the API refuses the others
        let fits = !word.is_empty() && word.bytes().all(|b| b >= b' ' && b != 0x7f);
        if fits { word.to_owned() } else { "x".to_owned() }
    };
    let mut spec = ServerSpec::new(word("server"), Vec::new());
    spec.route = Some(word("route").into());
    let tree = parse_command_line(state_file::line(&spec).as_bytes(), Path::new(""), &Disk);
    assert!(tree.root.error.is_none());
    let [statement] = &tree.root.items[..] else {
        panic!("one statement expected");
    };
    assert_eq!(statement.str(0).ok(), Some(spec.server.as_str()));
    assert_eq!(statement.str(1).ok(), Some(format!("route={}", word("route")).as_str()));
});

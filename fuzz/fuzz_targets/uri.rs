//! A normalised path begins with `/`, is no way out of the root, and stays as it is when normalised again.
#![no_main]

use couloir::http::uri;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &[u8])| {
    let (merge, raw) = input;
    let mut path = Vec::new();
    if let Ok(target) = uri::split_target(raw, false)
        && target.normalize(merge, &mut path).is_ok()
    {
        assert!(path.first() == Some(&b'/'));
        assert!(!path.split(|b| *b == b'/').any(|part| part == b".."), "{path:?}");
    }
    let _ = uri::parse_unsafe(raw);
    let (path, args) = uri::split_args(raw);
    assert!(path.len() + args.len() <= raw.len());
    let _ = uri::arg(args, b"a");
});

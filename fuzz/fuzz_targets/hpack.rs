//! What decodes stays within its limits, and comes back from the encoder as it was.
#![no_main]

use bytes::BytesMut;
use couloir::http::h2::hpack::{Decoder, Encoder, Fields, Indexing, ListLimits};
use libfuzzer_sys::fuzz_target;

const LIMITS: ListLimits = ListLimits { string: 1024, list: 4096 };

fuzz_target!(|blocks: Vec<Vec<u8>>| {
    let (mut theirs, mut ours) = (Decoder::new(4096), Decoder::new(4096));
    let mut encoder = Encoder::default();
    for block in &blocks {
        let mut fields = Fields::default();
        if theirs.decode(block, LIMITS, &mut fields).is_err() {
            return;
        }
        let size: usize = fields.iter().map(|(n, v)| n.len() + v.len()).sum();
        assert!(size <= LIMITS.list);
        let mut out = BytesMut::new();
        encoder.begin(&mut out);
        for (i, (name, value)) in fields.iter().enumerate() {
            let how = [Indexing::Kept, Indexing::Passing, Indexing::Never][i % 3];
            encoder.field(&mut out, name, value, how);
        }
        let mut again = Fields::default();
        let wide = ListLimits { string: 1 << 16, list: 1 << 16 };
        ours.decode(&out, wide, &mut again).unwrap();
        assert!(again.iter().eq(fields.iter().map(|(n, v)| (n, v)))
            || fields.iter().any(|(n, _)| n.iter().any(u8::is_ascii_uppercase)));
    }
});

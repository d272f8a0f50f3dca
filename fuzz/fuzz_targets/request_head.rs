//! A request head read in two pieces is the head read in one; what strict mode takes is clean, and read alike by both modes.
#![no_main]

use couloir::http::head::{Limits, Parser, Progress, RequestHead};
use couloir::http::strict;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (split, text) = input;
    let limits = Limits::default();
    let (whole, head) = read(text, text.len(), &limits);
    let (pieces, other) = read(text, usize::from(split).min(text.len()), &limits);
    assert_eq!(whole, pieces);
    if matches!(whole, Progress::Done { .. }) {
        assert_eq!((&head.line, head.content_length, head.chunked), (&other.line, other.content_length, other.chunked));
        assert!(!(head.chunked && head.content_length.is_some()));
        assert!(head.headers.iter().all(|(_, value)| !strict::has_control(value)));
    }
    let limits = Limits { strict: true, ..limits };
    let (whole, head) = read(text, text.len(), &limits);
    let (pieces, _) = read(text, usize::from(split).min(text.len()), &limits);
    assert_eq!(whole, pieces);
    if matches!(whole, Progress::Done { .. }) {
        assert_eq!((&head.line, head.content_length, head.chunked), (&other.line, other.content_length, other.chunked));
        assert!(strict::request_line(&[&head.line[..], b"\r\n"].concat()).is_ok());
        for (name, value) in head.headers.iter() {
            assert!(strict::field_line(&[name, b": ", value, b"\r\n"].concat(), name).is_ok());
        }
    }
});

fn read(text: &[u8], first: usize, limits: &Limits) -> (Progress, RequestHead) {
    let (mut parser, mut head) = (Parser::default(), RequestHead::default());
    let (mut from, mut upto) = (0, first);
    loop {
        match parser.parse(&text[from..upto], limits, &mut head) {
            Progress::Need if upto < text.len() => upto = text.len(),
            Progress::Blank { consumed } => {
                from += consumed;
                if from == text.len() {
                    return (Progress::Need, head);
                }
                upto = text.len();
            }
            Progress::Done { consumed } => return (Progress::Done { consumed: from + consumed }, head),
            other => return (other, head),
        }
    }
}

//! An application's records taken in two pieces are the records taken in one.
#![no_main]

use couloir::exchange::fastcgi::Answer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (split, text) = input;
    let (a, b) = text.split_at(usize::from(split).min(text.len()));
    let whole = read(&[text]);
    if let (Some(whole), Some(cut)) = (whole, read(&[a, b])) {
        assert_eq!(whole, cut);
    }
});

/// The output, the error output, and how it ended; `None` if it is refused.
fn read(pieces: &[&[u8]]) -> Option<(Vec<u8>, Vec<u8>, bool, Option<bool>)> {
    let mut answer = Answer::default();
    for piece in pieces {
        assert!(answer.feed(piece).ok()? <= piece.len());
    }
    Some((answer.stdout.to_vec(), answer.stderr.concat(), answer.closed, answer.ended))
}

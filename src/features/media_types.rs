//! Lists of media types: `gzip_types`, `sub_filter_types`, `charset_types` and their kin.

use crate::config::{Result, Statement};
use crate::contract::{Build, ResponseHead};
use std::sync::Arc;

/// The types of responses that a filter takes part in.
#[derive(Clone, Debug)]
pub enum MediaTypes {
    /// `*`: any, even none.
    All,
    /// These, in lower case.
    These(Arc<Vec<Box<[u8]>>>),
}

impl MediaTypes {
    /// Whether a response is of one of these types.
    pub fn contain(&self, head: &ResponseHead) -> bool {
        match self {
            MediaTypes::All => true,
            MediaTypes::These(list) => {
                let kind = head.media_type();
                !kind.is_empty() && list.iter().any(|t| t.eq_ignore_ascii_case(kind))
            }
        }
    }

    /// The same for a setting that may not be written, with the defaults of its directive.
    pub fn or_defaults(types: &Option<MediaTypes>, defaults: &[&str], head: &ResponseHead) -> bool {
        match types {
            Some(types) => types.contain(head),
            None => defaults
                .iter()
                .any(|t| t.as_bytes().eq_ignore_ascii_case(head.media_type())),
        }
    }

    /// Adds the arguments of a directive (`ngx_http_types_slot`); `first` is in the list even if not named.
    pub fn read(
        slot: &mut Option<MediaTypes>,
        first: &str,
        s: &Statement,
        b: &mut Build,
    ) -> Result<()> {
        let first = || vec![first.as_bytes().into()];
        let types = slot.get_or_insert_with(|| MediaTypes::These(Arc::new(first())));
        for i in 0..s.len() {
            let MediaTypes::These(list) = types else {
                return Ok(());
            };
            let kind = s.arg(i).to_ascii_lowercase();
            if kind == b"*" {
                *types = MediaTypes::All;
                continue;
            }
            if list.iter().any(|t| **t == *kind) {
                b.warn(s.warn_at(
                    i,
                    format!("duplicate MIME type \"{}\"", String::from_utf8_lossy(&kind)),
                ));
                continue;
            }
            Arc::make_mut(list).push(kind.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_compared_in_any_case_and_without_an_origins_charset() {
        let types = MediaTypes::These(Arc::new(vec![
            b"text/html"[..].into(),
            b"text/css"[..].into(),
        ]));
        for (text, of_origin, want) in [
            ("text/html", false, true),
            ("TEXT/CSS", false, true),
            ("text/htm", false, false),
            ("", false, false),
            ("text/html; charset=utf-8", true, true),
            ("text/html;charset=\"utf-8\"", true, true),
            ("text/html; charset=utf-8", false, false),
            ("text/html; level=1", true, false),
        ] {
            let head = ResponseHead {
                content_type: text.into(),
                type_charset: of_origin,
                ..ResponseHead::default()
            };
            assert_eq!(types.contain(&head), want, "{text}");
            assert!(MediaTypes::All.contain(&head));
        }
        assert!(!MediaTypes::or_defaults(
            &None,
            &["text/html"],
            &ResponseHead::default()
        ));
    }
}

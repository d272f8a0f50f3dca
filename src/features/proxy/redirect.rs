//! `proxy_redirect`: `Location` and `Refresh` in the client's terms; and the rules shared with `proxy_cookie_*`.

use super::pass::ProxyPass;
use crate::contract::*;
use std::sync::Arc;

/// What is replaced by what.
#[derive(Clone)]
pub struct Rule {
    /// The directive that says it.
    pub directive: &'static str,
    /// What the value must look like.
    pub from: Match,
    /// What takes its place.
    pub to: Template,
}

/// What a value is compared with.
#[derive(Clone)]
pub enum Match {
    /// The value begins with it; the rest stays.
    Prefix(Template),
    /// The whole value is replaced.
    Pattern(Arc<Pattern>),
    /// The whole value without regard to case and to a leading dot, which stays.
    Domain(Template),
}

impl Rule {
    /// Applies the rule to what follows the first `skip` bytes of `value`; false where it does not fit.
    pub fn apply(&self, r: &mut Request, value: &[u8], skip: usize, out: &mut Vec<u8>) -> bool {
        let Some((mut kept, mut subject)) = value.split_at_checked(skip) else {
            return false;
        };
        let replaced = match &self.from {
            Match::Prefix(from) => {
                let from = from.eval(r);
                if !subject.starts_with(&from) {
                    return false;
                }
                from.len()
            }
            Match::Pattern(p) => {
                if !p.exec(subject, r) {
                    return false;
                }
                subject.len()
            }
            Match::Domain(from) => {
                if let Some(rest) = subject.strip_prefix(b".") {
                    (kept, subject) = value.split_at(value.len() - rest.len());
                }
                if !subject.eq_ignore_ascii_case(&from.eval(r)) {
                    return false;
                }
                subject.len()
            }
        };
        out.clear();
        out.extend_from_slice(kept);
        let fits = self.to.put_value(r, self.directive, out);
        out.extend_from_slice(subject.get(replaced..).unwrap_or_default());
        fits
    }
}

/// Applies the first rule that fits.
pub fn first(
    rules: &[Rule],
    r: &mut Request,
    value: &[u8],
    skip: usize,
    out: &mut Vec<u8>,
) -> bool {
    rules.iter().any(|rule| rule.apply(r, value, skip, out))
}

/// Where the URL begins in `Refresh: 0; url=…`.
pub fn refresh_url(value: &[u8]) -> usize {
    value
        .windows(4)
        .position(|w| w.eq_ignore_ascii_case(b"url="))
        .map_or(0, |at| at + 4)
}

/// `proxy_redirect default`: from what `proxy_pass` names to the location's name.
pub fn default_rule(pass: &ProxyPass, target: &Target) -> Rule {
    let (from, to) = if target.uri.is_empty() {
        ([&pass.url, &b"/"[..]].concat(), &b"/"[..])
    } else {
        (pass.url.to_vec(), &*pass.location)
    };
    Rule {
        directive: "proxy_redirect",
        from: Match::Prefix(Template::literal(&from)),
        to: Template::literal(to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_of_refresh() {
        assert_eq!(refresh_url(b"7; URL=http://x/"), 7);
        assert_eq!(refresh_url(b"url=/"), 4);
        assert_eq!(refresh_url(b"7"), 0);
        assert_eq!(refresh_url(b""), 0);
    }
}

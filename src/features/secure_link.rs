//! Links that are only good with a hash, and only for a time: `secure_link`.

use crate::config::{Result, Statement};
use crate::contract::*;
use crate::http::date;
use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use md5::{Digest, Md5};
use std::sync::Arc;

/// Links with a hash.
pub struct SecureLink;

/// What a link's hash is made of.
#[derive(Default, Clone)]
pub struct SecureLinkConf {
    /// The hash and the time, as the request gives them.
    link: Option<Template>,
    /// What the hash must be that of.
    md5: Option<Template>,
    secret: Option<Box<[u8]>>,
}

impl Conf for SecureLinkConf {
    fn inherit(&mut self, outer: &Self) {
        if self.secret.is_none() {
            crate::inherit!(self, outer; link, md5);
            if self.link.is_none() && self.md5.is_none() {
                self.secret.clone_from(&outer.secret);
            }
        }
    }
}

impl Module for SecureLink {
    const NAME: &'static str = "http_secure_link";
    type Conf = SecureLinkConf;
    const DIRECTIVES: &'static [Directive<SecureLinkConf>] = &[
        Directive::new(
            "secure_link",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`secure_link expression;` Base64url of an MD5 hash, then perhaps a comma and the end of its time.",
            |c, s, b| {
                once(&mut c.link, s, b.template(s, 0)?)?;
                c.unmixed(s)
            },
        ),
        Directive::new(
            "secure_link_md5",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`secure_link_md5 expression;` What the hash must be that of.",
            |c, s, b| {
                once(&mut c.md5, s, b.template(s, 0)?)?;
                c.unmixed(s)
            },
        ),
        Directive::new(
            "secure_link_secret",
            Place::ANY_HTTP,
            Args::Exactly(1),
            "`secure_link_secret word;` Links of the form /prefix/hash/link, whose hash is that of link and word.",
            |c, s, _| {
                once(&mut c.secret, s, s.arg(0).into())?;
                c.unmixed(s)
            },
        ),
    ];
    const VARIABLES: &'static [Variable] = &[
        Variable::new("secure_link", |r, _| match r.kept::<SecureLinkConf>() {
            Some(SecureLinkConf {
                secret: Some(secret),
                ..
            }) => Val::from_option(old_link(r.unparsed_uri(), secret)),
            Some(SecureLinkConf {
                link: Some(link),
                md5: Some(md5),
                ..
            }) => check(&link.eval(r), &md5.eval(r), date::time().0),
            _ => Val::None,
        })
        .memo(),
        Variable::new("secure_link_expires", |r, _| {
            match r.kept::<SecureLinkConf>() {
                Some(SecureLinkConf {
                    secret: None,
                    link: Some(link),
                    md5: Some(_),
                }) => match split(&link.eval(r)) {
                    Some((_, Some((text, _)))) => Val::Owned(text.to_vec()),
                    _ => Val::None,
                },
                _ => Val::None,
            }
        })
        .memo(),
    ];

    fn attach(conf: &Arc<SecureLinkConf>, on: &mut Hooks) -> Result<()> {
        on.keep(conf.clone());
        Ok(())
    }
}

impl SecureLinkConf {
    fn unmixed(&self, s: &Statement) -> Result<()> {
        if self.secret.is_some() && (self.link.is_some() || self.md5.is_some()) {
            return Err(s.error("\"secure_link_secret\" cannot be mixed with \"secure_link\" and \"secure_link_md5\""));
        }
        Ok(())
    }
}

/// What follows the comma of a link: the text, and the time that it means.
type Expires<'l> = Option<(&'l [u8], i64)>;

/// The hash and the time of a link; `None` where the time is no time.
fn split(link: &[u8]) -> Option<(&[u8], Expires<'_>)> {
    let Some(comma) = memchr::memchr(b',', link) else {
        return Some((link, None));
    };
    let (hash, time) = (link.get(..comma)?, link.get(comma + 1..)?);
    let n = crate::config::value::parse_number(time)
        .and_then(|n| i64::try_from(n).ok())
        .filter(|n| *n > 0)?;
    Some((hash, Some((time, n))))
}

/// `1` where the hash is right, `0` where its time is over, nothing where it is wrong.
fn check(link: &[u8], text: &[u8], now: i64) -> Val<'static> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &URL_SAFE,
        GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let Some((hash, expires)) = split(link) else {
        return Val::None;
    };
    if hash.len() > 24 {
        return Val::None;
    }
    let hash = hash.split(|c| *c == b'=').next().unwrap_or_default();
    let Ok(given) = LENIENT.decode(hash) else {
        return Val::None;
    };
    if !same(&given, &Md5::digest(text)) {
        return Val::None;
    }
    Val::Bytes(if expires.is_some_and(|(_, t)| t < now) {
        b"0"
    } else {
        b"1"
    })
}

/// The link of `/prefix/hash/link`, if the hash is right.
fn old_link<'u>(uri: &'u [u8], secret: &[u8]) -> Option<&'u [u8]> {
    let mut parts = uri.get(1..)?.splitn(3, |c| *c == b'/');
    let (_, hash, link) = (parts.next()?, parts.next()?, parts.next()?);
    if hash.len() != 32 || link.is_empty() {
        return None;
    }
    let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    let given: Option<Vec<u8>> = hash
        .chunks_exact(2)
        .map(|p| Some(digit(*p.first()?)? << 4 | digit(*p.last()?)?))
        .collect();
    same(
        &given?,
        &Md5::new()
            .chain_update(link)
            .chain_update(secret)
            .finalize(),
    )
    .then_some(link)
}

/// Compares in a time that does not tell how much agrees.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(link: &str) -> Option<u8> {
        check(
            link.as_bytes(),
            b"2147483647/s/link127.0.0.1 secret",
            1_400_000_000,
        )
        .as_bytes()
        .first()
        .copied()
    }

    #[test]
    fn links_of_the_documentation() {
        assert_eq!(verdict("_e4Nc3iduzkWRm01TBBNYw,2147483647"), Some(b'1'));
        assert_eq!(verdict("_e4Nc3iduzkWRm01TBBNYw==,2147483647"), Some(b'1'));
        assert_eq!(verdict("_e4Nc3iduzkWRm01TBBNYw,1"), Some(b'0'));
        assert_eq!(verdict("_e4Nc3iduzkWRm01TBBNYw"), Some(b'1'));
        for bad in [
            "",
            ",",
            "_e4Nc3iduzkWRm01TBBNYw,0",
            "_e4Nc3iduzkWRm01TBBNYx,1x",
            "_e4Nc3iduzkWRm01TBBNYwAAAA",
            "_e4Nc3iduzkWRm01TBBN",
            "/e4Nc3iduzkWRm01TBBNYw",
        ] {
            assert_eq!(verdict(bad), None, "{bad}");
        }
        assert_eq!(
            old_link(b"/p/5e814704a28d9bc1914ff19fa0c4a00a/link", b"secret"),
            Some(&b"link"[..])
        );
        assert_eq!(
            old_link(b"/p/5E814704a28d9bc1914ff19fa0c4a00a/link", b"secret"),
            Some(&b"link"[..])
        );
        for bad in [
            "/",
            "",
            "/p/5e814704a28d9bc1914ff19fa0c4a00a/",
            "/p/5e814704a28d9bc1914ff19fa0c4a00b/link",
            "/p/zz814704a28d9bc1914ff19fa0c4a00a/link",
        ] {
            assert_eq!(old_link(bad.as_bytes(), b"secret"), None, "{bad}");
        }
    }
}

//! TLS towards the origin of a location.

use super::{Request, Template};
use crate::tls::client::{Client, Hello, OwnCertificate};
use crate::tls::load::ByName;
use crate::upstream::connect::{ConnectTls, Tag, own};
use crate::upstream::identity::TlsSettings;
use std::sync::Arc;

/// `proxy_ssl_*` of a location, and the like of other protocols.
#[derive(Clone)]
pub struct UpstreamTls {
    /// The context; locations of the same settings share it.
    pub client: Arc<Client>,
    /// `proxy_ssl_name`; the target's host where it is not given.
    pub name: Option<Template>,
    /// The target's host, where the target has no variables.
    pub host: Option<Box<[u8]>>,
    /// `proxy_ssl_server_name`.
    pub send_name: bool,
    /// `proxy_ssl_certificate` and its key, where one of them has variables.
    pub certificate: Option<(Template, Template, Arc<ByName>)>,
    /// Protocols for ALPN, each behind its length; empty offers none.
    pub alpn: &'static [u8],
}

impl UpstreamTls {
    /// TLS of `https://` without any directive.
    ///
    /// # Errors
    /// OpenSSL's.
    pub fn plain() -> Result<UpstreamTls, String> {
        Ok(UpstreamTls {
            client: Client::plain()?,
            name: None,
            host: None,
            send_name: false,
            certificate: None,
            alpn: b"",
        })
    }

    /// What of a connection is the same for all requests.
    pub fn settings(&self) -> TlsSettings {
        TlsSettings {
            context: self.client.id(),
            send_name: self.send_name,
            name: self
                .fixed_name()
                .filter(|_| self.is_named())
                .map(Into::into),
            alpn: self.alpn,
        }
    }

    /// Whether anything of a connection depends on the request.
    pub fn has_own(&self) -> bool {
        self.certificate.is_some() || (self.is_named() && self.fixed_name().is_none())
    }

    /// Appends what depends on the request to what [`Tag::own`](crate::upstream::connect::Tag::own) compares.
    pub fn own(&self, r: &Request, host: &[u8], out: &mut Vec<u8>) {
        if self.is_named() && self.fixed_name().is_none() {
            match &self.name {
                Some(t) => own(out, b'n', &t.eval(r)),
                None => own(out, b'n', host),
            }
        }
        if let Some((certificate, key, _)) = &self.certificate {
            own(out, b'c', &certificate.eval(r));
            own(out, b'k', &key.eval(r));
        }
    }

    /// Whether the name matters.
    fn is_named(&self) -> bool {
        self.send_name || self.client.verifies()
    }

    fn fixed_name(&self) -> Option<&[u8]> {
        match &self.name {
            Some(t) => t.as_literal(),
            None => self.host.as_deref(),
        }
    }

    /// What a connection to `peer` of the group says and checks; `host` is `$proxy_host`, the name where
    /// `proxy_ssl_name` is not given.
    pub fn connect(
        &self,
        r: &Request,
        host: &[u8],
        group: &Arc<str>,
        peer: &Arc<str>,
        tag: &Tag<'_>,
    ) -> ConnectTls {
        let name = match &self.name {
            Some(t) if self.is_named() => t.eval(r).into_owned(),
            _ => host.to_vec(),
        };
        let name = without_port(&name);
        let sendable = self.send_name
            && !name.is_empty()
            && !name.starts_with(b"[")
            && crate::config::addr::parse_ip(name).is_none();
        let certificate = self.certificate.as_ref().and_then(|(c, k, by_name)| {
            let certificate = c.eval(r).into_owned();
            // an empty name is none
            (!certificate.is_empty()).then(|| OwnCertificate {
                certificate,
                key: k.eval(r).into_owned(),
                by_name: by_name.clone(),
            })
        });
        ConnectTls {
            client: self.client.clone(),
            hello: Hello {
                group: group.clone(),
                peer: peer.clone(),
                settings: tag.identity.hash(),
                own: tag.own.into(),
                server_name: sendable.then(|| String::from_utf8_lossy(name).into_owned()),
                certificate,
                alpn: self.alpn,
            },
            name: name.into(),
        }
    }
}

fn without_port(name: &[u8]) -> &[u8] {
    let host = if name.first() == Some(&b'[') {
        memchr::memchr(b']', name).unwrap_or(0)
    } else {
        0
    };
    match memchr::memchr(b':', name.get(host..).unwrap_or_default()) {
        Some(at) => name.get(..host + at).unwrap_or_default(),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_no_part_of_a_name() {
        for (text, name) in [
            ("a.b", "a.b"),
            ("a.b:443", "a.b"),
            ("[::1]:443", "[::1]"),
            ("[::1]", "[::1]"),
            ("[::1", "["),
            ("", ""),
        ] {
            assert_eq!(without_port(text.as_bytes()), name.as_bytes(), "{text}");
        }
    }
}

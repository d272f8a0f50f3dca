//! nginx's ngx_http_ssl_module: TLS towards clients.

mod caches;
mod context;
mod variables;

pub use caches::{cache, passwords};
pub use context::server;

use crate::config::Diag;
use crate::contract::once;
use crate::contract::*;
use crate::tls::context::PROTOCOLS;
use crate::tls::load::{Cache, Name, SharedLoader, Version};
use crate::tls::ocsp;
use crate::tls::session::Zone;
use caches::{certificate_cache, ocsp_cache, password_file, session_cache};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// `ssl_*`.
pub struct Ssl;

/// What the `ssl_*` directives wrote in one block.
#[derive(Default, Clone)]
pub struct SslConf {
    certificates: Option<Vec<Named>>,
    keys: Option<Vec<Named>>,
    cache: Option<Option<Arc<Cache>>>,
    passwords: Option<Arc<Vec<Vec<u8>>>>,
    compression: Option<bool>,
    dhparam: Option<String>,
    curve: Option<String>,
    protocols: Option<u32>,
    ciphers: Option<String>,
    prefer_server_ciphers: Option<bool>,
    buffer_size: Option<u64>,
    verify: Option<VerifyClient>,
    verify_depth: Option<u64>,
    client_certificate: Option<String>,
    trusted_certificate: Option<String>,
    crl: Option<String>,
    builtin: Option<Builtin>,
    zone: Option<Arc<Zone>>,
    session_timeout: Option<u64>,
    session_tickets: Option<bool>,
    ticket_keys: Option<Vec<(String, Arc<Statement>)>>,
    ocsp: Option<u8>,
    ocsp_responder: Option<String>,
    ocsp_cache: Option<Option<Arc<ocsp::Cache>>>,
    stapling: Option<bool>,
    stapling_file: Option<String>,
    stapling_responder: Option<String>,
    stapling_verify: Option<bool>,
    early_data: Option<bool>,
    ech_files: Option<()>,
    commands: Option<Vec<(String, String)>>,
    key_log: Option<PathBuf>,
    /// How often files are looked at; none inside where they are not.
    watch: Option<Option<Duration>>,
    reject_handshake: Option<bool>,
    inheritable: Option<bool>,
    /// `ssl`.
    enable: Option<bool>,
}

/// A parameter of `ssl_certificate` or `ssl_certificate_key`.
#[derive(Clone)]
struct Named {
    text: Vec<u8>,
    template: Template,
    /// Where it was written.
    at: Arc<Statement>,
}

/// The cache inside OpenSSL that `ssl_session_cache` asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Builtin {
    /// `off`: sessions are refused.
    Off,
    /// `none`: clients are told that sessions may be reused, but none is kept.
    None,
    /// `builtin` and `builtin:n`.
    Size(Option<i32>),
    /// Only a shared zone.
    Unused,
}

impl Conf for SslConf {
    fn inherit(&mut self, o: &Self) {
        crate::inherit!(self, o; certificates, keys, cache, passwords, compression, dhparam, curve, protocols, ciphers,
            prefer_server_ciphers, buffer_size, verify, verify_depth, client_certificate, trusted_certificate, crl, builtin,
            zone, session_timeout, session_tickets, ticket_keys, ocsp, ocsp_responder, ocsp_cache, stapling, stapling_file,
            stapling_responder, stapling_verify, early_data, ech_files, commands, key_log, watch, reject_handshake, enable);
    }
}

impl SslConf {
    /// Whether there are certificates.
    pub fn has_certificates(&self) -> bool {
        self.certificates.is_some()
    }

    /// The files that a server without variables in their names is made of, as they are now.
    fn files(&self, base: &Path) -> Vec<(PathBuf, Option<Version>)> {
        let Some(certificates) = &self.certificates else {
            return Vec::new();
        };
        let named = certificates
            .iter()
            .chain(self.keys.iter().flatten())
            .filter_map(|n| match Name::parse(&n.text, base) {
                Name::Path(p) => Some(p),
                _ => None,
            });
        let others = [
            &self.client_certificate,
            &self.trusted_certificate,
            &self.crl,
            &self.dhparam,
            &self.stapling_file,
        ];
        let others = others
            .into_iter()
            .flatten()
            .filter(|f| !f.is_empty())
            .map(|f| base.join(f));
        named
            .chain(others)
            .map(|p| (p.clone(), Version::of(&p)))
            .collect()
    }

    /// `ssl_object_cache_inheritable`.
    pub fn inheritable(&self) -> bool {
        self.inheritable.unwrap_or(true)
    }

    /// `ssl`.
    pub fn is_enabled(&self) -> bool {
        self.enable.unwrap_or(false)
    }

    /// `ssl_reject_handshake`.
    pub fn rejects(&self) -> bool {
        self.reject_handshake.unwrap_or(false)
    }
}

/// Looking more often would be a load.
const SHORTEST_WATCH: Duration = Duration::from_millis(50);

const HTTP_SERVER: Place = Place::HTTP.or(Place::SERVER);
const ONE: Args = Args::Exactly(1);

const VERIFY: &[(&str, VerifyClient)] = &[
    ("off", VerifyClient::Off),
    ("on", VerifyClient::On),
    ("optional", VerifyClient::Optional),
    ("optional_no_ca", VerifyClient::OptionalNoCa),
];

impl Module for Ssl {
    const NAME: &'static str = "http_ssl";
    type Conf = SslConf;
    const DIRECTIVES: &'static [Directive<SslConf>] = &[
        Directive::new(
            "ssl",
            HTTP_SERVER,
            Args::Flag,
            "`ssl on|off;` With `on`, the addresses of which this is the default server speak TLS. nginx has removed it in 1.25.1; it is accepted with a warning, as before. Use `listen … ssl` instead.",
            |c, s, b| {
                once(&mut c.enable, s, s.flag(0)?)?;
                let warning = s.warn("the \"ssl\" directive is deprecated, use the \"listen ... ssl\" directive instead");
                let help = match s.flag(0)? {
                    true => {
                        "write \"ssl\" behind the address, as in \"listen 443 ssl;\", and remove this line; nginx refuses it since 1.25.1"
                    }
                    false => "remove this line; nginx refuses it since 1.25.1",
                };
                b.warn(warning.with_help(help));
                Ok(())
            },
        ),
        Directive::new(
            "ssl_certificate",
            HTTP_SERVER,
            ONE,
            "`ssl_certificate file|data:text;` A certificate with its chain (PEM); may be given for several kinds of keys, and may contain variables.",
            |c, s, b| named(&mut c.certificates, s, b),
        ),
        Directive::new(
            "ssl_certificate_key",
            HTTP_SERVER,
            ONE,
            "`ssl_certificate_key file|data:text;` The key (PEM) of the certificate in the same place of the list. `engine:` and `store:` are not supported.",
            |c, s, b| named(&mut c.keys, s, b),
        ),
        Directive::new(
            "ssl_certificate_cache",
            HTTP_SERVER,
            Args::Between(1, 3),
            "`ssl_certificate_cache off|max=N [inactive=time] [valid=time];` Keeps certificates whose names have variables. Default: off.",
            certificate_cache,
        ),
        Directive::new(
            "ssl_ech_file",
            HTTP_SERVER,
            ONE,
            "`ssl_ech_file file;` Accepted with a warning: OpenSSL 3.6 has no encrypted hello.",
            |c, _, _| {
                c.ech_files = Some(());
                Ok(())
            },
        ),
        Directive::new(
            "ssl_password_file",
            HTTP_SERVER,
            ONE,
            "`ssl_password_file file;` Passwords of keys, one a line.",
            password_file,
        ),
        Directive::new(
            "ssl_certificate_compression",
            HTTP_SERVER,
            Args::Flag,
            "`ssl_certificate_compression on|off;` Sends certificates compressed (RFC 8879) where OpenSSL is built with compression; else it is a warning, as in nginx. Default: off.",
            |c, s, _| once(&mut c.compression, s, s.flag(0)?),
        ),
        Directive::new(
            "ssl_dhparam",
            HTTP_SERVER,
            ONE,
            "`ssl_dhparam file;` Parameters (PEM) for DHE ciphers.",
            |c, s, _| text(&mut c.dhparam, s),
        ),
        Directive::new(
            "ssl_ecdh_curve",
            HTTP_SERVER,
            ONE,
            "`ssl_ecdh_curve curve[:curve …];` Default: auto, OpenSSL's own list.",
            |c, s, _| text(&mut c.curve, s),
        ),
        Directive::new(
            "ssl_protocols",
            HTTP_SERVER,
            Args::AtLeast(1),
            "`ssl_protocols protocol …;` Default: TLSv1.2 TLSv1.3.",
            protocols,
        ),
        Directive::new(
            "ssl_ciphers",
            HTTP_SERVER,
            ONE,
            "`ssl_ciphers list;` In OpenSSL's form, for TLS 1.2 and older. Default: HIGH:!aNULL:!MD5.",
            |c, s, _| text(&mut c.ciphers, s),
        ),
        Directive::new(
            "ssl_buffer_size",
            HTTP_SERVER,
            ONE,
            "`ssl_buffer_size size;` The size of the records that are sent, from 512 bytes to 16k. Default: 16k.",
            |c, s, _| once(&mut c.buffer_size, s, s.size(0)?),
        ),
        Directive::new(
            "ssl_verify_client",
            HTTP_SERVER,
            ONE,
            "`ssl_verify_client on|off|optional|optional_no_ca;` Default: off.",
            |c, s, _| once(&mut c.verify, s, s.one_of(0, VERIFY)?),
        ),
        Directive::new(
            "ssl_verify_depth",
            HTTP_SERVER,
            ONE,
            "`ssl_verify_depth number;` Default: 1.",
            |c, s, _| once(&mut c.verify_depth, s, s.number(0)?),
        ),
        Directive::new(
            "ssl_client_certificate",
            HTTP_SERVER,
            ONE,
            "`ssl_client_certificate file;` Authorities (PEM) of clients' certificates; their names are sent to clients.",
            |c, s, _| text(&mut c.client_certificate, s),
        ),
        Directive::new(
            "ssl_trusted_certificate",
            HTTP_SERVER,
            ONE,
            "`ssl_trusted_certificate file;` Authorities (PEM) whose names are not sent.",
            |c, s, _| text(&mut c.trusted_certificate, s),
        ),
        Directive::new(
            "ssl_prefer_server_ciphers",
            HTTP_SERVER,
            Args::Flag,
            "`ssl_prefer_server_ciphers on|off;` Default: off.",
            |c, s, _| once(&mut c.prefer_server_ciphers, s, s.flag(0)?),
        ),
        Directive::new(
            "ssl_session_cache",
            HTTP_SERVER,
            Args::Between(1, 2),
            "`ssl_session_cache off|none|[builtin[:size]] [shared:name:size];` A shared zone lives on through reloads. Default: none.",
            session_cache,
        ),
        Directive::new(
            "ssl_session_tickets",
            HTTP_SERVER,
            Args::Flag,
            "`ssl_session_tickets on|off;` Default: on.",
            |c, s, _| once(&mut c.session_tickets, s, s.flag(0)?),
        ),
        Directive::new(
            "ssl_session_ticket_key",
            HTTP_SERVER,
            ONE,
            "`ssl_session_ticket_key file;` 48 or 80 random bytes; the first of several files encrypts.",
            |c, s, _| {
                c.ticket_keys
                    .get_or_insert_default()
                    .push((s.str(0)?.to_owned(), Arc::new(s.clone())));
                Ok(())
            },
        ),
        Directive::new(
            "ssl_session_timeout",
            HTTP_SERVER,
            ONE,
            "`ssl_session_timeout time;` Default: 5m.",
            |c, s, _| once(&mut c.session_timeout, s, s.sec(0)?),
        ),
        Directive::new(
            "ssl_crl",
            HTTP_SERVER,
            ONE,
            "`ssl_crl file;` Revoked certificates (PEM).",
            |c, s, _| text(&mut c.crl, s),
        ),
        Directive::new(
            "ssl_ocsp",
            HTTP_SERVER,
            ONE,
            "`ssl_ocsp on|off|leaf;` Asks the responders of clients' certificates whether they are revoked; `leaf` asks for the client's own alone. Default: off.",
            |c, s, _| {
                once(
                    &mut c.ocsp,
                    s,
                    s.one_of(0, &[("off", 0), ("on", 1), ("leaf", 2)])?,
                )
            },
        ),
        Directive::new(
            "ssl_ocsp_responder",
            HTTP_SERVER,
            ONE,
            "`ssl_ocsp_responder url;` Asked in place of the responders that certificates name.",
            |c, s, _| text(&mut c.ocsp_responder, s),
        ),
        Directive::new(
            "ssl_ocsp_cache",
            HTTP_SERVER,
            ONE,
            "`ssl_ocsp_cache off|shared:name:size;` Remembers what responders said, for as long as they allow. Default: off.",
            ocsp_cache,
        ),
        Directive::new(
            "ssl_stapling",
            HTTP_SERVER,
            Args::Flag,
            "`ssl_stapling on|off;` Sends OCSP responses: that of `ssl_stapling_file`, or those that the certificates' responders give. Default: off.",
            |c, s, _| once(&mut c.stapling, s, s.flag(0)?),
        ),
        Directive::new(
            "ssl_stapling_file",
            HTTP_SERVER,
            ONE,
            "`ssl_stapling_file file;` An OCSP response (DER).",
            |c, s, _| text(&mut c.stapling_file, s),
        ),
        Directive::new(
            "ssl_stapling_responder",
            HTTP_SERVER,
            ONE,
            "`ssl_stapling_responder url;` Asked in place of the responder that a certificate names. Its name is resolved when the configuration is read.",
            |c, s, _| text(&mut c.stapling_responder, s),
        ),
        Directive::new(
            "ssl_stapling_verify",
            HTTP_SERVER,
            Args::Flag,
            "`ssl_stapling_verify on|off;` Verifies the responses of responders. Default: off.",
            |c, s, _| once(&mut c.stapling_verify, s, s.flag(0)?),
        ),
        Directive::new(
            "ssl_early_data",
            HTTP_SERVER,
            Args::Flag,
            "`ssl_early_data on|off;` Takes requests that come with a resumed handshake of TLS 1.3; they may be replays (`$ssl_early_data`). Default: off.",
            |c, s, _| once(&mut c.early_data, s, s.flag(0)?),
        ),
        Directive::new(
            "ssl_conf_command",
            HTTP_SERVER,
            Args::Exactly(2),
            "`ssl_conf_command name value;` Any command of OpenSSL's SSL_CONF_cmd.",
            |c, s, _| {
                c.commands
                    .get_or_insert_default()
                    .push((s.str(0)?.to_owned(), s.str(1)?.to_owned()));
                Ok(())
            },
        ),
        Directive::new(
            "ssl_key_log",
            HTTP_SERVER,
            ONE,
            "`ssl_key_log path;` Writes the secrets of handshakes in the form of SSLKEYLOGFILE, for debugging.",
            |c, s, b| {
                let path = b.prefixed(s.str(0)?);
                once(&mut c.key_log, s, path)
            },
        ),
        Directive::own(
            "ssl_certificate_watch",
            HTTP_SERVER,
            ONE,
            "`ssl_certificate_watch on|off|time;` How often certificates, keys, authorities and revocation lists without variables in their names are looked at; new ones serve without a reload, broken ones leave the old ones in place. Default: on (5s).",
            |c, s, _| {
                let watch = match s.arg(0) {
                    b"on" => Some(context::WATCH),
                    b"off" => None,
                    _ => Some(Duration::from_millis(s.msec(0)?).max(SHORTEST_WATCH)),
                };
                once(&mut c.watch, s, watch)
            },
        ),
        Directive::new(
            "ssl_object_cache_inheritable",
            Place::MAIN,
            Args::Flag,
            "`ssl_object_cache_inheritable on|off;` A reload takes over certificates and keys whose files have not changed. Default: on.",
            |c, s, _| once(&mut c.inheritable, s, s.flag(0)?),
        ),
        Directive::new(
            "ssl_engine",
            Place::MAIN,
            ONE,
            "`ssl_engine device;` Not supported.",
            |_, s, _| Err(s.error("\"ssl_engine\" directive is not supported")),
        ),
        Directive::new(
            "ssl_reject_handshake",
            HTTP_SERVER,
            Args::Flag,
            "`ssl_reject_handshake on|off;` Refuses handshakes in this server. Default: off.",
            |c, s, _| once(&mut c.reject_handshake, s, s.flag(0)?),
        ),
    ];
    const VARIABLES: &'static [Variable] = variables::VARIABLES;

    fn configured(b: &mut Build) -> ConfResult<()> {
        // before any certificate is loaded: those of the configuration in force may be taken over
        if b.written::<Ssl>(BlockId::MAIN)
            .is_none_or(SslConf::inheritable)
        {
            b.shared::<SharedLoader>().lock().inherit();
        }
        Ok(())
    }

    fn assembled(b: &mut Build, ids: &[BlockId], servers: &mut [Server]) -> ConfResult<()> {
        // whether or not they listen with TLS
        for (id, on) in ids.iter().zip(servers) {
            let conf = b.effective::<Ssl>(*id);
            let made = server(&conf, b).map_err(|diag| b.at_merge(diag))?;
            on.tls = Some(Arc::new(made));
        }
        b.shared::<SharedLoader>().lock().keep();
        Ok(())
    }

    fn attach(_conf: &Arc<SslConf>, _on: &mut Hooks) -> ConfResult<()> {
        Ok(())
    }
}

fn text(slot: &mut Option<String>, s: &Statement) -> ConfResult<()> {
    once(slot, s, s.str(0)?.to_owned())
}

fn named(list: &mut Option<Vec<Named>>, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let named = Named {
        text: s.arg(0).to_vec(),
        template: b.template(s, 0)?,
        at: Arc::new(s.clone()),
    };
    list.get_or_insert_default().push(named);
    Ok(())
}

fn protocols(c: &mut SslConf, s: &Statement, b: &mut Build) -> ConfResult<()> {
    for i in 0..s.len() {
        let word = s.arg(i);
        let Some((_, bit)) = PROTOCOLS
            .iter()
            .find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(word))
        else {
            return Err(s.invalid_value(i));
        };
        let bits = c.protocols.get_or_insert(0);
        if *bits & bit != 0 {
            b.warn(s.warn_at(
                i,
                format!("duplicate value \"{}\"", String::from_utf8_lossy(word)),
            ));
        }
        *bits |= bit;
    }
    Ok(())
}

/// A warning without a place, as nginx gives when it merges settings.
fn warning(text: impl Into<String>) -> Box<Diag> {
    Diag::new(crate::config::Level::Warn, text)
}

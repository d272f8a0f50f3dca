//! `…_ssl_*`: TLS towards origins, for every prefix that has it.
//!
//! A module keeps a [`TlsWritten`] in a field `tls` of its settings and joins [`tls_directives`] with its own.

use crate::contract::*;
use crate::features::ssl;
use crate::log::LogFiles;
use crate::tls::client::{Client, Settings};
use crate::tls::context::{DEFAULT_PROTOCOLS, PROTOCOLS};
use crate::tls::load::{ByName, Cache, Name, SharedLoader};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What the `…_ssl_*` directives wrote in one block.
#[derive(Default, Clone)]
pub struct TlsWritten {
    /// `…_ssl_name`.
    pub name: Option<Template>,
    /// `…_ssl_server_name`.
    pub send_name: Option<bool>,
    /// `…_ssl_verify`, and where it was written.
    pub verify: Option<(bool, Arc<Statement>)>,
    /// `…_ssl_verify_depth`.
    pub verify_depth: Option<u64>,
    /// `…_ssl_trusted_certificate`.
    pub trusted: Option<File>,
    /// `…_ssl_crl`.
    pub crl: Option<File>,
    /// `…_ssl_protocols`: bits of [`PROTOCOLS`].
    pub protocols: Option<u32>,
    /// `…_ssl_ciphers`, and where it was written.
    pub ciphers: Option<(String, Arc<Statement>)>,
    /// `…_ssl_session_reuse`.
    pub session_reuse: Option<bool>,
    /// `…_ssl_certificate`.
    pub certificate: Option<Named>,
    /// `…_ssl_certificate_key`.
    pub key: Option<Named>,
    /// `…_ssl_certificate_cache`; none inside where it is `off`.
    pub cache: Option<Option<Arc<Cache>>>,
    /// `…_ssl_password_file`.
    pub passwords: Option<Arc<Vec<Vec<u8>>>>,
    /// `…_ssl_conf_command`, in order.
    pub commands: Option<Vec<(String, String)>>,
    /// `…_ssl_key_log`.
    pub key_log: Option<File>,
    /// Contexts of the configuration being read; there once any of the directives stands somewhere.
    contexts: Option<Contexts>,
}

/// A file, and where it was named; none where the name is empty.
#[derive(Clone)]
pub struct File {
    path: Option<PathBuf>,
    at: Arc<Statement>,
}

/// A certificate or key, whose name may have variables.
#[derive(Clone)]
pub struct Named {
    template: Template,
    at: Arc<Statement>,
}

/// Locations of the same settings share a context, as locations that inherit do in nginx.
#[derive(Clone, Default)]
struct Contexts(Arc<Mutex<Made>>);

#[derive(Default)]
struct Made {
    base: PathBuf,
    loader: SharedLoader,
    contexts: HashMap<Settings, Arc<Client>>,
}

impl Conf for TlsWritten {
    fn inherit(&mut self, outer: &Self) {
        crate::inherit!(self, outer; name, send_name, verify, verify_depth, trusted, crl, protocols, ciphers,
            session_reuse, certificate, key, cache, passwords, commands, key_log, contexts);
    }
}

impl TlsWritten {
    /// The settings of a location of `prefix` whose origin may speak TLS; `host` is the target's where that has no
    /// variables, `alpn` is what the protocol asks for.
    ///
    /// # Errors
    /// nginx's texts for what is missing or cannot be loaded, with the directive's place.
    pub fn build(
        &self,
        prefix: &str,
        host: Option<&[u8]>,
        alpn: &'static [u8],
    ) -> ConfResult<UpstreamTls> {
        let (fixed, by_variables) = self.certificates(prefix)?;
        let client = match &self.contexts {
            None => Client::plain().map_err(Diag::plain)?,
            Some(contexts) => self.context(prefix, contexts, fixed)?,
        };
        Ok(UpstreamTls {
            client,
            name: self.name.clone(),
            host: host.map(Into::into),
            send_name: self.send_name.unwrap_or(false),
            certificate: by_variables,
            alpn,
        })
    }

    fn context(
        &self,
        prefix: &str,
        contexts: &Contexts,
        certificate: Option<(Name, Name)>,
    ) -> ConfResult<Arc<Client>> {
        let path = |f: &Option<File>| f.as_ref().and_then(|f| f.path.clone());
        let verify = match (&self.verify, path(&self.trusted)) {
            (Some((true, _)), Some(trusted)) => {
                let depth = self.verify_depth.unwrap_or(1);
                Some((trusted, u32::try_from(depth).unwrap_or(u32::MAX >> 1)))
            }
            (Some((true, at)), None) => {
                return Err(at
                    .error(format!(
                        "no {prefix}_ssl_trusted_certificate for {prefix}_ssl_verify"
                    ))
                    .unplaced());
            }
            _ => None,
        };
        let made = &mut *contexts.0.lock();
        let settings = Settings {
            protocols: self.protocols.unwrap_or(DEFAULT_PROTOCOLS),
            ciphers: self
                .ciphers
                .as_ref()
                .map_or_else(|| "DEFAULT".to_owned(), |(list, _)| list.clone()),
            passwords: self.passwords.clone().filter(|_| certificate.is_some()),
            certificate,
            crl: path(&self.crl).filter(|_| verify.is_some()),
            verify,
            commands: self.commands.clone().unwrap_or_default(),
            base: made.base.clone(),
            reuse: self.session_reuse.unwrap_or(true),
            key_log: path(&self.key_log),
        };
        if let Some(known) = made.contexts.get(&settings) {
            return Ok(known.clone());
        }
        let key_log = match &settings.key_log {
            Some(path) => Some(
                LogFiles::global()
                    .open(path)
                    .map_err(|e| self.at_fault(&e.to_string()))?,
            ),
            None => None,
        };
        let client = Client::new(&settings, &mut made.loader.lock(), key_log)
            .map_err(|text| self.at_fault(&text))?;
        let client = Arc::new(client);
        made.contexts.insert(settings, client.clone());
        Ok(client)
    }

    /// The certificate without variables, or that with variables.
    #[allow(clippy::type_complexity)]
    fn certificates(
        &self,
        prefix: &str,
    ) -> ConfResult<(
        Option<(Name, Name)>,
        Option<(Template, Template, Arc<ByName>)>,
    )> {
        let Some(certificate) = self
            .certificate
            .as_ref()
            .filter(|c| c.template.as_literal().is_none_or(|l| !l.is_empty()))
        else {
            return Ok((None, None));
        };
        let Some(key) = &self.key else {
            let name = String::from_utf8_lossy(certificate.at.arg(0)).into_owned();
            return Err(certificate
                .at
                .error(format!(
                    "no \"{prefix}_ssl_certificate_key\" is defined for certificate \"{name}\""
                ))
                .unplaced());
        };
        let base = self
            .contexts
            .as_ref()
            .map(|c| c.0.lock().base.clone())
            .unwrap_or_default();
        let fixed = (certificate.template.as_literal(), key.template.as_literal());
        if let (Some(c), Some(k)) = fixed {
            return Ok((Some((Name::parse(c, &base), Name::parse(k, &base))), None));
        }
        let by_name = ByName {
            base,
            passwords: self
                .passwords
                .as_ref()
                .map(|p| p.to_vec())
                .unwrap_or_default(),
            cache: self.cache.clone().flatten(),
        };
        let by_name = Arc::new(by_name);
        Ok((
            None,
            Some((certificate.template.clone(), key.template.clone(), by_name)),
        ))
    }

    /// An error of making a context, at the directive that it is about.
    fn at_fault(&self, text: &str) -> Box<Diag> {
        let named = |n: &Option<Named>| n.as_ref().map(|n| n.at.clone());
        let file = |f: &Option<File>| f.as_ref().map(|f| f.at.clone());
        let of_key = text.contains("certificate key \"") || text.contains("PrivateKey(");
        let of_trusted = self.trusted.as_ref().is_some_and(|f| {
            let shown = f.path.as_ref().map(|p| format!("\"{}\"", p.display()));
            shown.is_some_and(|s| text.contains(&s))
        });
        let at = match text {
            t if t.starts_with("open() ") => file(&self.key_log),
            t if t.contains("CRL") || t.contains("add_crl") => file(&self.crl),
            t if t.contains("cipher_list") => self.ciphers.as_ref().map(|(_, at)| at.clone()),
            _ if of_key => named(&self.key),
            _ if of_trusted => file(&self.trusted),
            t if t.contains("certificate") => named(&self.certificate),
            _ => None,
        };
        match at {
            Some(at) => at.error_at(0, text).unplaced(),
            None => Diag::plain(text),
        }
    }

    /// Makes contexts possible; every setter calls it.
    fn touch(&mut self, b: &mut Build) -> &mut Self {
        let base = b.conf_prefixed("");
        let loader = b.shared::<SharedLoader>().clone();
        let contexts = b.shared::<Contexts>();
        {
            let made = &mut *contexts.0.lock();
            (made.base, made.loader) = (base, loader);
        }
        self.contexts = Some(contexts.clone());
        self
    }
}

/// `…_ssl_protocols`.
///
/// # Errors
/// nginx's `invalid value "…"`.
pub fn protocols(c: &mut TlsWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    super::bits(&mut c.touch(b).protocols, s, b, PROTOCOLS)
}

/// `…_ssl_ciphers`.
///
/// # Errors
/// A duplicate.
pub fn ciphers(c: &mut TlsWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let list = (s.str(0)?.to_owned(), Arc::new(s.clone()));
    once(&mut c.touch(b).ciphers, s, list)
}

/// `…_ssl_name`.
///
/// # Errors
/// A duplicate, or an unknown variable.
pub fn name(c: &mut TlsWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    super::template(&mut c.touch(b).name, s, b)
}

/// `…_ssl_verify`.
///
/// # Errors
/// A duplicate, or neither `on` nor `off`.
pub fn verify(c: &mut TlsWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    once(&mut c.touch(b).verify, s, (s.flag(0)?, Arc::new(s.clone())))
}

/// `…_ssl_server_name`, `…_ssl_session_reuse`.
///
/// # Errors
/// A duplicate, or neither `on` nor `off`.
pub fn flag(
    c: &mut TlsWritten,
    slot: fn(&mut TlsWritten) -> &mut Option<bool>,
    s: &Statement,
    b: &mut Build,
) -> ConfResult<()> {
    once(slot(c.touch(b)), s, s.flag(0)?)
}

/// `…_ssl_verify_depth`.
///
/// # Errors
/// A duplicate, or no number.
pub fn verify_depth(c: &mut TlsWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    once(&mut c.touch(b).verify_depth, s, s.number(0)?)
}

/// `…_ssl_trusted_certificate`, `…_ssl_crl`; relative names begin at the configuration's folder.
///
/// # Errors
/// A duplicate.
pub fn file(
    c: &mut TlsWritten,
    slot: fn(&mut TlsWritten) -> &mut Option<File>,
    s: &Statement,
    b: &mut Build,
) -> ConfResult<()> {
    let name = s.str(0)?;
    let file = File {
        path: (!name.is_empty()).then(|| b.conf_prefixed(name)),
        at: Arc::new(s.clone()),
    };
    once(slot(c.touch(b)), s, file)
}

/// `…_ssl_key_log`.
///
/// # Errors
/// A duplicate.
pub fn key_log(c: &mut TlsWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let file = File {
        path: Some(b.prefixed(s.str(0)?)),
        at: Arc::new(s.clone()),
    };
    once(&mut c.touch(b).key_log, s, file)
}

/// `…_ssl_certificate`, `…_ssl_certificate_key`.
///
/// # Errors
/// A duplicate, or an unknown variable.
pub fn named(
    c: &mut TlsWritten,
    slot: fn(&mut TlsWritten) -> &mut Option<Named>,
    s: &Statement,
    b: &mut Build,
) -> ConfResult<()> {
    let named = Named {
        template: b.template(s, 0)?,
        at: Arc::new(s.clone()),
    };
    once(slot(c.touch(b)), s, named)
}

/// `…_ssl_certificate_cache`.
///
/// # Errors
/// nginx's texts.
pub fn cache(c: &mut TlsWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    if c.cache.is_some() {
        return Err(s.duplicate());
    }
    c.touch(b).cache = Some(ssl::cache(s)?);
    Ok(())
}

/// `…_ssl_password_file`.
///
/// # Errors
/// nginx's texts.
pub fn passwords(c: &mut TlsWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let list = ssl::passwords(s, b)?;
    once(&mut c.touch(b).passwords, s, list)
}

/// `…_ssl_conf_command`.
///
/// # Errors
/// Text that is not UTF-8.
pub fn command(c: &mut TlsWritten, s: &Statement, b: &mut Build) -> ConfResult<()> {
    let command = (s.str(0)?.to_owned(), s.str(1)?.to_owned());
    c.touch(b).commands.get_or_insert_default().push(command);
    Ok(())
}

/// The table of `…_ssl_*` for a prefix; `$conf` keeps a [`TlsWritten`] in its field `tls`.
macro_rules! tls_directives {
    ($p:literal, $conf:ty) => {{
        use $crate::contract::{Args, Directive, Place};
        use $crate::features::pass::tls;
        const ONE: Args = Args::Exactly(1);
        const HERE: Place = Place::ANY_HTTP;
        const TABLE: &[Directive<$conf>] = &[
            Directive::new(
                concat!($p, "_ssl_session_reuse"),
                HERE,
                Args::Flag,
                concat!("`", $p, "_ssl_session_reuse on|off;` Resumes the last session with an origin, whichever thread had it. Default: on."),
                |c, s, b| tls::flag(&mut c.tls, |t| &mut t.session_reuse, s, b),
            ),
            Directive::new(
                concat!($p, "_ssl_protocols"),
                HERE,
                Args::AtLeast(1),
                concat!("`", $p, "_ssl_protocols protocol …;` Default: TLSv1.2 TLSv1.3."),
                |c, s, b| tls::protocols(&mut c.tls, s, b),
            ),
            Directive::new(
                concat!($p, "_ssl_ciphers"),
                HERE,
                ONE,
                concat!("`", $p, "_ssl_ciphers list;` In OpenSSL's form, for TLS 1.2 and older. Default: DEFAULT."),
                |c, s, b| tls::ciphers(&mut c.tls, s, b),
            ),
            Directive::new(
                concat!($p, "_ssl_name"),
                HERE,
                ONE,
                concat!("`", $p, "_ssl_name name;` The name to send and to verify; may contain variables. Default: the host of the target."),
                |c, s, b| tls::name(&mut c.tls, s, b),
            ),
            Directive::new(
                concat!($p, "_ssl_server_name"),
                HERE,
                Args::Flag,
                concat!("`", $p, "_ssl_server_name on|off;` Sends the name to the origin (SNI). Default: off."),
                |c, s, b| tls::flag(&mut c.tls, |t| &mut t.send_name, s, b),
            ),
            Directive::new(
                concat!($p, "_ssl_verify"),
                HERE,
                Args::Flag,
                concat!("`", $p, "_ssl_verify on|off;` Verifies the origin's certificate. Default: off."),
                |c, s, b| tls::verify(&mut c.tls, s, b),
            ),
            Directive::new(
                concat!($p, "_ssl_verify_depth"),
                HERE,
                ONE,
                concat!("`", $p, "_ssl_verify_depth number;` Default: 1."),
                |c, s, b| tls::verify_depth(&mut c.tls, s, b),
            ),
            Directive::new(
                concat!($p, "_ssl_trusted_certificate"),
                HERE,
                ONE,
                concat!("`", $p, "_ssl_trusted_certificate file;` Authorities (PEM) by which origins are verified."),
                |c, s, b| tls::file(&mut c.tls, |t| &mut t.trusted, s, b),
            ),
            Directive::new(
                concat!($p, "_ssl_crl"),
                HERE,
                ONE,
                concat!("`", $p, "_ssl_crl file;` Revoked certificates (PEM)."),
                |c, s, b| tls::file(&mut c.tls, |t| &mut t.crl, s, b),
            ),
            Directive::new(
                concat!($p, "_ssl_certificate"),
                HERE,
                ONE,
                concat!("`", $p, "_ssl_certificate file|data:text;` The certificate (PEM) to show to origins; may contain variables, and is none where it is empty."),
                |c, s, b| tls::named(&mut c.tls, |t| &mut t.certificate, s, b),
            ),
            Directive::new(
                concat!($p, "_ssl_certificate_key"),
                HERE,
                ONE,
                concat!("`", $p, "_ssl_certificate_key file|data:text;` Its key (PEM). `engine:` and `store:` are not supported."),
                |c, s, b| tls::named(&mut c.tls, |t| &mut t.key, s, b),
            ),
            Directive::new(
                concat!($p, "_ssl_certificate_cache"),
                HERE,
                Args::Between(1, 3),
                concat!("`", $p, "_ssl_certificate_cache off|max=N [inactive=time] [valid=time];` Keeps certificates whose names have variables. Default: off."),
                |c, s, b| tls::cache(&mut c.tls, s, b),
            ),
            Directive::new(
                concat!($p, "_ssl_password_file"),
                HERE,
                ONE,
                concat!("`", $p, "_ssl_password_file file;` Passwords of keys, one a line."),
                |c, s, b| tls::passwords(&mut c.tls, s, b),
            ),
            Directive::new(
                concat!($p, "_ssl_conf_command"),
                HERE,
                Args::Exactly(2),
                concat!("`", $p, "_ssl_conf_command name value;` Any command of OpenSSL's SSL_CONF_cmd."),
                |c, s, b| tls::command(&mut c.tls, s, b),
            ),
            Directive::new(
                concat!($p, "_ssl_key_log"),
                HERE,
                ONE,
                concat!("`", $p, "_ssl_key_log path;` Writes the secrets of handshakes in the form of SSLKEYLOGFILE, for debugging."),
                |c, s, b| tls::key_log(&mut c.tls, s, b),
            ),
        ];
        TABLE
    }};
}
pub(crate) use tls_directives;

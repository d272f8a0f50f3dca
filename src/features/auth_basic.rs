//! `auth_basic`: names and passwords (RFC 7617).

use super::password;
use crate::config::Result;
use crate::contract::*;
use crate::http::method::Method;
use crate::log::{Errno, Level as LogLevel};
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use parking_lot::Mutex;
use sha1::{Digest, Sha1};
use std::collections::HashSet;
use std::fs::File;
use std::hash::BuildHasher;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use tokio::sync::Semaphore;

/// Access by name and password.
pub struct AuthBasic;

/// Realm and user file of a block.
#[derive(Default, Clone)]
pub struct AuthBasicConf {
    realm: Option<Template>,
    user_file: Option<PathTemplate>,
}

impl Conf for AuthBasicConf {
    fn inherit(&mut self, outer: &Self) {
        crate::inherit!(self, outer; realm, user_file);
    }
}

const ANY_HTTP_LIMIT_EXCEPT: Place = Place::ANY_HTTP.or(Place::LIMIT_EXCEPT);

impl Module for AuthBasic {
    const NAME: &'static str = "http_auth_basic";
    type Conf = AuthBasicConf;
    const DIRECTIVES: &'static [Directive<AuthBasicConf>] = &[
        Directive::new(
            "auth_basic",
            ANY_HTTP_LIMIT_EXCEPT,
            Args::Exactly(1),
            "`auth_basic realm|off;` Asks for a name and a password of the realm. Default: off.",
            |c, s, b| once(&mut c.realm, s, b.head_template(s, 0)?),
        ),
        Directive::new(
            "auth_basic_user_file",
            ANY_HTTP_LIMIT_EXCEPT,
            Args::Exactly(1),
            "`auth_basic_user_file file;` Lines of `name:hash[:comment]`; hashes are those of crypt(3), $apr1$, {SHA}, {SSHA} or {PLAIN}.",
            |c, s, b| {
                let path = b.conf_path(s, 0)?;
                once(&mut c.user_file, s, path)
            },
        ),
    ];

    fn attach(conf: &Arc<AuthBasicConf>, on: &mut Hooks) -> Result<()> {
        if let (Some(realm), Some(file)) = (&conf.realm, &conf.user_file)
            && !realm.is(b"off")
        {
            on.on(
                Phase::Access,
                Check {
                    realm: realm.clone(),
                    file: file.clone(),
                },
            );
        }
        Ok(())
    }
}

struct Check {
    realm: Template,
    file: PathTemplate,
}

impl Handler for Check {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        let realm = self.realm.eval(r);
        if &*realm == b"off" {
            return Next::Continue;
        }
        let proxy = r.method == Method::Connect;
        let field: &[u8] = if proxy {
            b"Proxy-Authorization"
        } else {
            b"Authorization"
        };
        let Some(given) = r.headers().get(field).and_then(credentials) else {
            r.error(
                LogLevel::Info,
                format_args!("no user/password was provided for basic authentication"),
            );
            return ask(r, &realm, proxy);
        };
        let path = self.file.eval(r);
        let shown = &*path;
        let hash = match hash_of(shown, &given.user) {
            Ok(Some(hash)) => hash,
            Ok(None) => {
                let user = crate::http::text::shown(&given.user);
                r.error(
                    LogLevel::Error,
                    format_args!("user \"{user}\" was not found in \"{}\"", shown.display()),
                );
                return ask(r, &realm, proxy);
            }
            Err((call, e)) => {
                let missing = e.kind() == io::ErrorKind::NotFound;
                let (level, status) = if missing {
                    (LogLevel::Error, 403)
                } else {
                    (LogLevel::Crit, 500)
                };
                r.error(
                    level,
                    format_args!("{call}() \"{}\" failed{}", shown.display(), Errno::of(&e)),
                );
                return Next::Status(status);
            }
        };
        if !password::is_slow(&hash) {
            let verdict = password::verify(&given.password, &hash);
            return decide(r, &realm, proxy, &given.user, verdict);
        }
        let known = fingerprint(&given.password, &hash);
        if VERIFIED.lock().as_ref().is_some_and(|v| v.contains(&known)) {
            return Next::Allow;
        }
        Next::Wait(Box::pin(async move {
            let Given { user, password } = given;
            // as many at once as there are processors: guessing passwords must not starve the others
            let permit = workers().acquire().await;
            let verdict =
                tokio::task::spawn_blocking(move || password::verify(&password, &hash)).await;
            drop(permit);
            let verdict = verdict.ok().flatten();
            if verdict == Some(true) {
                remember(known);
            }
            decide(r, &realm, proxy, &user, verdict)
        }))
    }
}

fn decide(
    r: &mut Request,
    realm: &[u8],
    proxy: bool,
    user: &[u8],
    verdict: Option<bool>,
) -> Next<'static> {
    match verdict {
        Some(true) => Next::Allow,
        Some(false) => {
            r.error(
                LogLevel::Error,
                format_args!(
                    "user \"{}\": password mismatch",
                    crate::http::text::shown(user)
                ),
            );
            ask(r, realm, proxy)
        }
        None => {
            r.error(
                LogLevel::Crit,
                format_args!("crypt_r() failed (22: Invalid argument)"),
            );
            Next::Status(500)
        }
    }
}

/// 401 with the challenge; a CONNECT is answered 407.
fn ask(r: &mut Request, realm: &[u8], proxy: bool) -> Next<'static> {
    if let Err(status) = r.check_value("auth_basic", "its realm", realm) {
        return Next::Status(status);
    }
    let challenge = [b"Basic realm=\"", realm, b"\""].concat();
    let (name, status): (&[u8], u16) = if proxy {
        (b"Proxy-Authenticate", 407)
    } else {
        (b"WWW-Authenticate", 401)
    };
    r.out.headers.append(name, &challenge);
    Next::Status(status)
}

#[derive(Debug, PartialEq, Eq)]
struct Given {
    user: Vec<u8>,
    password: Vec<u8>,
}

/// Name and password of an `Authorization` field, as nginx reads it.
fn credentials(field: &[u8]) -> Option<Given> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let (scheme, rest) = field.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    let encoded = rest.trim_ascii_start().split(|c| *c == b'=').next()?;
    let mut user = LENIENT.decode(encoded).ok()?;
    let colon = memchr::memchr(b':', &user).filter(|i| *i > 0)?;
    let password = user.split_off(colon + 1);
    user.truncate(colon);
    Some(Given { user, password })
}

/// The hash of a user in a user file; an error comes with the call that failed.
fn hash_of(
    path: &Path,
    user: &[u8],
) -> std::result::Result<Option<Vec<u8>>, (&'static str, io::Error)> {
    let mut file = BufReader::with_capacity(2048, File::open(path).map_err(|e| ("open", e))?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if file
            .read_until(b'\n', &mut line)
            .map_err(|e| ("pread", e))?
            == 0
        {
            return Ok(None);
        }
        if let Some(hash) = hash_in(&line, user) {
            return Ok(Some(hash.to_vec()));
        }
    }
}

fn hash_in<'l>(line: &'l [u8], user: &[u8]) -> Option<&'l [u8]> {
    if matches!(line.first(), Some(b'#' | b'\r')) {
        return None;
    }
    let rest = line.strip_prefix(user)?.strip_prefix(b":")?;
    rest.split(|c| matches!(c, b'\n' | b'\r' | b':')).next()
}

/// Passwords that were right, by a digest that is good in this process only.
static VERIFIED: Mutex<Option<HashSet<[u8; 20]>>> = Mutex::new(None);

fn remember(known: [u8; 20]) {
    let mut verified = VERIFIED.lock();
    let set = verified.get_or_insert_default();
    if set.len() >= 4096 {
        set.clear();
    }
    set.insert(known);
}

fn fingerprint(password: &[u8], hash: &[u8]) -> [u8; 20] {
    static KEY: OnceLock<[u8; 32]> = OnceLock::new();
    let key = KEY.get_or_init(|| {
        let random = std::hash::RandomState::new();
        let mut key = [0; 32];
        for (i, part) in key.chunks_mut(8).enumerate() {
            part.copy_from_slice(&random.hash_one(i).to_ne_bytes());
        }
        key
    });
    Sha1::new()
        .chain_update(key)
        .chain_update(hash.len().to_ne_bytes())
        .chain_update(hash)
        .chain_update(password)
        .finalize()
        .into()
}

fn workers() -> &'static Semaphore {
    static WORKERS: OnceLock<Semaphore> = OnceLock::new();
    WORKERS
        .get_or_init(|| Semaphore::new(std::thread::available_parallelism().map_or(1, |n| n.get())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_authorization() {
        let given = |f: &str| {
            credentials(f.as_bytes()).map(|g| {
                (
                    String::from_utf8(g.user).unwrap(),
                    String::from_utf8(g.password).unwrap(),
                )
            })
        };
        let both = |u: &str, p: &str| Some((u.to_owned(), p.to_owned()));
        assert_eq!(given("Basic YTpi"), both("a", "b"));
        assert_eq!(given("basic   YTpiOmM="), both("a", "b:c"));
        assert_eq!(given("Basic YTo="), both("a", ""));
        assert_eq!(given("Basic YTo"), both("a", ""));
        for bad in [
            "",
            "Basic",
            "Basic ",
            "Bearer YTpi",
            "Basic OmI=",
            "Basic YWI=",
            "Basic %%%%",
            "Basic Y",
        ] {
            assert_eq!(given(bad), None, "{bad}");
        }
    }

    #[test]
    fn lines_of_a_user_file() {
        let hash =
            |l: &str| hash_in(l.as_bytes(), b"joe").map(|h| String::from_utf8(h.to_vec()).unwrap());
        assert_eq!(hash("joe:{PLAIN}x:comment\n").as_deref(), Some("{PLAIN}x"));
        assert_eq!(hash("joe:{PLAIN}x\r\n").as_deref(), Some("{PLAIN}x"));
        assert_eq!(hash("joe:").as_deref(), Some(""));
        for other in ["#joe:x\n", "joey:x\n", "jo:x\n", "\n", "joe\n"] {
            assert_eq!(hash(other), None, "{other}");
        }
    }

    #[test]
    fn fingerprints_tell_hash_and_password_apart() {
        assert_eq!(fingerprint(b"a", b"b"), fingerprint(b"a", b"b"));
        assert_ne!(fingerprint(b"ab", b"c"), fingerprint(b"b", b"ca"));
    }
}

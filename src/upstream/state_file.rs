//! `state`: the servers of a group in a file, as `server` directives.

use super::members::Servers;
use super::peer::ServerSpec;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes the file beside its place and moves it there when it is whole.
///
/// # Errors
/// What the system says, with the file's name.
pub fn write(path: &Path, servers: &Servers) -> io::Result<()> {
    let mut text = String::new();
    for row in &servers.rows {
        text.push_str(&line(&row.spec));
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temp = Path::new(&name);
    let written = replace(path, temp, text.as_bytes());
    written.map_err(|e| {
        let _ = std::fs::remove_file(temp);
        let text = format!("state file \"{}\" cannot be written: {e}", path.display());
        io::Error::new(e.kind(), text)
    })
}

fn replace(path: &Path, temp: &Path, text: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file: File = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(temp)?;
    file.write_all(text)?;
    file.sync_data()?;
    std::fs::rename(temp, path)
}

/// A server as its directive, with what differs from the defaults.
pub fn line(spec: &ServerSpec) -> String {
    let plain = ServerSpec::new("", Vec::new());
    let mut out = format!("server {}", quoted(&spec.server));
    let mut number = |name: &str, value: u64, default: u64, unit: &str| {
        if value != default {
            let _ = write!(out, " {name}={value}{unit}");
        }
    };
    number("weight", spec.weight.into(), plain.weight.into(), "");
    number("max_conns", spec.max_conns.into(), 0, "");
    number(
        "max_fails",
        spec.max_fails.into(),
        plain.max_fails.into(),
        "",
    );
    number("fail_timeout", spec.fail_timeout, plain.fail_timeout, "s");
    number("slow_start", spec.slow_start, 0, "ms");
    if let Some(route) = &spec.route {
        let _ = write!(out, " {}", quoted(&format!("route={route}")));
    }
    let service = spec.resolve.as_ref().and_then(|name| name.service.as_ref());
    if let Some(service) = service {
        let _ = write!(out, " {}", quoted(&format!("service={service}")));
    }
    let flags = [
        ("resolve", spec.resolve.is_some()),
        ("backup", spec.backup),
        ("down", spec.down),
        ("drain", spec.drain),
    ];
    for (name, _) in flags.iter().filter(|(_, on)| *on) {
        let _ = write!(out, " {name}");
    }
    out.push_str(";\n");
    out
}

/// A word of the configuration, in quotes where it needs them.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:/[]=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    let mut out = String::from("\"");
    for c in word.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::super::peer::ResolveName;
    use super::*;
    use crate::config::{Disk, parse_command_line};
    use proptest::prelude::*;

    fn words(line: &str) -> Vec<String> {
        let tree = parse_command_line(line.as_bytes(), Path::new(""), &Disk);
        let statement = &tree.root.items[0];
        assert_eq!(statement.name(), "server");
        (0..statement.len())
            .map(|i| statement.str(i).unwrap().to_owned())
            .collect()
    }

    #[test]
    fn lines_hold_what_differs() {
        let mut spec = ServerSpec::new("127.0.0.1:80", Vec::new());
        assert_eq!(line(&spec), "server 127.0.0.1:80;\n");
        (spec.weight, spec.max_fails, spec.fail_timeout) = (3, 0, 30);
        (spec.slow_start, spec.backup, spec.down) = (1500, true, true);
        spec.route = Some("a b".into());
        assert_eq!(
            line(&spec),
            "server 127.0.0.1:80 weight=3 max_fails=0 fail_timeout=30s slow_start=1500ms \"route=a b\" backup down;\n"
        );
        let mut named = ServerSpec::new("example.com", Vec::new());
        named.resolve = Some(ResolveName {
            host: "example.com".into(),
            port: 80,
            service: Some("http".into()),
        });
        assert_eq!(line(&named), "server example.com service=http resolve;\n");
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("u.state");
        let mut servers = Servers::default();
        let addr = std::net::SocketAddr::from(([127, 0, 0, 1], 80));
        servers.add(ServerSpec::new("127.0.0.1:80", vec![addr.into()]));
        write(&path, &servers).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "server 127.0.0.1:80;\n"
        );
        servers.rows.clear();
        write(&path, &servers).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let lost = folder.path().join("no/u.state");
        let e = write(&lost, &servers).unwrap_err().to_string();
        assert!(e.contains("cannot be written"), "{e}");
    }

    proptest! {
        #[test]
        fn words_come_back(name in "[ -~]{1,40}", route in "[ -~]{1,32}") {
            let mut spec = ServerSpec::new(name.clone(), Vec::new());
            spec.route = Some(route.as_str().into());
            prop_assert_eq!(words(&line(&spec)), [name, format!("route={route}")]);
        }
    }
}

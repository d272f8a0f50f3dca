//! What `-t` says of a configuration: the exit status and nginx's lines must be the same. The cases are the files of
//! `differential/load`; their form is told in `differential/README.md`.

use std::path::{Path, PathBuf};

use crate::common::nginx::Nginx;
use crate::common::proc::{Couloir, run};
use crate::common::tls::pair;

/// Makes one test of each file, and one that no file is left out.
macro_rules! load_cases {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                compare(stringify!($name));
            }
        )*

        #[test]
        fn every_file_is_run() {
            let mut found: Vec<String> = std::fs::read_dir(folder())
                .expect("cases")
                .map(|entry| entry.expect("entry").path().file_stem().expect("name").to_string_lossy().into_owned())
                .collect();
            found.sort();
            assert_eq!(found, [$(stringify!($name)),*]);
        }
    };
}

load_cases![arguments, contexts, main, servers, syntax, tls, variables];

/// One configuration.
struct Case {
    line: usize,
    /// The section's word: what stands around the text.
    within: String,
    text: String,
    /// What Couloir says where nginx, or an older one, says otherwise; whether it does so on purpose.
    differs: Option<(bool, String)>,
}

fn compare(name: &str) {
    let nginx = Nginx::require();
    let reference_is_old = Nginx::version() < super::LEVEL;
    let text = std::fs::read_to_string(folder().join(format!("{name}.txt"))).expect("case file");
    let (files, cases) = parse(&text);
    let place = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(place.path().join("temp")).expect("a folder");
    for (name, text) in &files {
        std::fs::write(place.path().join(name), text).expect("a file");
    }
    for name in ["cert", "other"] {
        let (cert, key) = pair(name);
        let mut pem = cert.to_pem().expect("PEM");
        pem.extend_from_slice(&key.private_key_to_pem_pkcs8().expect("PEM"));
        std::fs::write(place.path().join(format!("{name}.pem")), pem).expect("a file");
    }
    let mut failures = Vec::new();
    for case in &cases {
        let theirs = said(&nginx, case, place.path());
        let ours = said(&Couloir::program(), case, place.path());
        let expected = match &case.differs {
            Some((on_purpose, expected)) if *on_purpose || reference_is_old => {
                if *expected == theirs {
                    failures.push(format!(
                        "line {}: {}\n  says that it differs, but this nginx says the same",
                        case.line, case.text
                    ));
                }
                expected
            }
            _ => &theirs,
        };
        if *expected != ours {
            failures.push(format!(
                "line {}: {}\n--- nginx\n{expected}--- couloir\n{ours}",
                case.line, case.text
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{name}: {} of {} configurations differ\n\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n\n")
    );
}

/// Exit status and the lines of nginx's own form; the folder is called DIR.
fn said(program: &Path, case: &Case, place: &Path) -> String {
    let dir = place.display().to_string();
    let conf = place.join("nginx.conf");
    std::fs::write(&conf, case.whole().replace("%%TESTDIR%%", &dir)).expect("nginx.conf");
    let (conf, log) = (conf.display().to_string(), format!("{dir}/first.log"));
    let pid = format!("pid {dir}/nginx.pid;");
    let mut args = vec!["-t", "-p", &dir, "-c", &conf, "-e", &log];
    if case.within != "main" || !case.text.contains("pid ") {
        args.extend(["-g", &pid]);
    }
    let (status, _, err) = run(program, &args);
    let lines = err.lines().filter_map(|line| line.strip_prefix("nginx: "));
    let lines: Vec<_> = lines.map(|line| line.replace(&dir, "DIR")).collect();
    let code = status.code().map_or("none".to_owned(), |c| c.to_string());
    format!("{code}\n{}\n", lines.join("\n"))
}

impl Case {
    fn whole(&self) -> String {
        // all that would be written elsewhere than in the folder, on one line
        const HTTP: &str = "http { access_log off; client_body_temp_path %%TESTDIR%%/temp/client_body; proxy_temp_path %%TESTDIR%%/temp/proxy; fastcgi_temp_path %%TESTDIR%%/temp/fastcgi; uwsgi_temp_path %%TESTDIR%%/temp/uwsgi; scgi_temp_path %%TESTDIR%%/temp/scgi;";
        const LISTEN: &str = "server { listen 127.0.0.1:8080;";
        let text = &self.text;
        let http = |inner: String| format!("events {{ }}\n{HTTP}\n{inner}\n}}\n");
        match &*self.within {
            "config" => format!("{text}\n"),
            "main" => format!("{text}\nevents {{ }}\n"),
            "events" => format!("events {{\n{text}\n}}\n"),
            "alone" => http(text.clone()),
            "http" => http(format!("{text}\n{LISTEN} }}")),
            "bare" => http(format!("server {{\n{text}\n}}")),
            "server" => http(format!("{LISTEN}\n{text}\n}}")),
            "location" => http(format!("{LISTEN} location / {{\n{text}\n}} }}")),
            "if" => http(format!(
                "{LISTEN} location / {{ if ($uri) {{\n{text}\n}} }} }}"
            )),
            "upstream" => http(format!("upstream u {{\n{text}\n}}\n{LISTEN} }}")),
            other => panic!("line {}: unknown section {other}", self.line),
        }
    }
}

/// Files and cases.
fn parse(text: &str) -> (Vec<(String, String)>, Vec<Case>) {
    let (mut files, mut cases) = (Vec::<(String, String)>::new(), Vec::<Case>::new());
    let mut section = String::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(title) = line.strip_prefix("--- ") {
            section = title.trim().to_owned();
            if let Some(name) = section.strip_prefix("file ") {
                files.push((name.to_owned(), String::new()));
            } else if section == "config" {
                cases.push(Case::new(index + 1, "config"));
            }
        } else if let Some(said) = line.strip_prefix("=> ") {
            let case = cases.last_mut().expect("a case comes first");
            match (said, &mut case.differs) {
                (said, None) => {
                    let on_purpose = said.starts_with("on purpose: ");
                    assert!(on_purpose || said == "since 1.31", "line {}", index + 1);
                    case.differs = Some((on_purpose, String::new()));
                }
                (said, Some((_, expected))) => *expected += &format!("{said}\n"),
            }
        } else if line.starts_with("### ") || section.is_empty() {
        } else if section.starts_with("file ") {
            let (_, text) = files.last_mut().expect("a file");
            *text += &format!("{line}\n");
        } else if section == "config" {
            let case = cases.last_mut().expect("a case");
            if !case.text.is_empty() {
                case.text.push('\n');
            }
            case.text += line;
        } else if !line.is_empty() {
            let mut case = Case::new(index + 1, &section);
            case.text = line.to_owned();
            cases.push(case);
        }
    }
    for case in &mut cases {
        case.text.truncate(case.text.trim_end().len());
    }
    (files, cases)
}

impl Case {
    fn new(line: usize, within: &str) -> Case {
        Case {
            line,
            within: within.to_owned(),
            text: String::new(),
            differs: None,
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/load")
}

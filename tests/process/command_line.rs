//! The command line, and starts that fail.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::common::client;
use super::common::ports::Port;
use super::common::proc::{Couloir, run};
use super::common::{DEADLINE, wait_for};
use super::{Folder, title, worker_of};

#[test]
fn versions_go_to_the_error_stream() {
    let program = Couloir::program();
    let (status, out, err) = run(&program, &["-v"]);
    assert!(status.success() && out.is_empty());
    assert!(
        err.starts_with("nginx version: nginx/1.31.5\ncouloir version: "),
        "{err}"
    );
    let (status, out, err) = run(&program, &["-V"]);
    assert!(status.success() && out.is_empty());
    assert!(err.contains("\nbuilt with OpenSSL 3"), "{err}");
    assert!(
        err.contains("\nTLS SNI support enabled\nconfigure arguments: --prefix="),
        "{err}"
    );
    assert!(!err.contains("--without-http_proxy_module"), "{err}");
    assert!(!err.contains("--without-http_uwsgi_module"), "{err}");
    assert!(!err.contains("--with-http_perl_module"), "{err}");
    let (status, out, err) = run(&program, &["-z"]);
    assert_eq!(
        (status.code(), out.as_str(), err.as_str()),
        (Some(1), "", "nginx: invalid option: \"z\"\n")
    );
}

#[test]
fn tests_of_the_configuration() {
    let good =
        "pid nginx.pid; error_log error.log; events { } http { access_log off; include inc; }";
    let folder = Folder::new(good);
    fs::write(folder.path().join("inc"), "# nothing\n").unwrap();
    let ok = "nginx: the configuration file DIR/nginx.conf syntax is ok\n\
              nginx: configuration file DIR/nginx.conf test is successful\n";
    assert_eq!(folder.run(&["-t"]), (Some(0), String::new(), ok.into()));
    assert_eq!(
        folder.run(&["-tq"]),
        (Some(0), String::new(), String::new())
    );
    // a test leaves no pid file over which a later `-s` would stumble
    assert!(!folder.path().join("nginx.pid").exists());
    let (code, out, err) = folder.run(&["-T"]);
    let dump = format!(
        "# configuration file DIR/nginx.conf:\n{good}\n# configuration file DIR/inc:\n# nothing\n\n"
    );
    assert_eq!((code, out, err.as_str()), (Some(0), dump, ok));

    folder.write("events { }\nhttp {\n  servr { }\n}\n");
    let (code, out, err) = folder.run(&["-t"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    let expected = "nginx: [emerg] unknown directive \"servr\" in DIR/nginx.conf:3\n  3 |   servr { }\n    |   ^^^^^\n\
                    help: did you mean \"server\"?\nnginx: configuration file DIR/nginx.conf test failed\n";
    assert_eq!(err, expected);
    // the log has nginx's own line
    assert!(folder.read("first.log").contains("[emerg]"));
    assert_eq!(folder.run(&["-tq"]).2, expected);
    assert_eq!(
        folder.run(&[]).2,
        expected.replace("nginx: configuration file DIR/nginx.conf test failed\n", "")
    );

    folder.write("http { }");
    let (code, _, err) = folder.run(&["-t"]);
    let expected = "nginx: the configuration file DIR/nginx.conf syntax is ok\n\
                    nginx: [emerg] no \"events\" section in configuration\n\
                    nginx: configuration file DIR/nginx.conf test failed\n";
    assert_eq!((code, err.as_str()), (Some(1), expected));

    folder.write("pid no/such/folder; events { }");
    let (code, _, err) = folder.run(&["-t"]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains(
            "nginx: [emerg] open() \"DIR/no/such/folder\" failed (2: No such file or directory)\n"
        ),
        "{err}"
    );
    folder.write("events { } http { access_log off; server { listen 192.0.2.1:9; } }");
    let (code, _, err) = folder.run(&["-t", "-g", "pid nginx.pid;"]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains(
            "nginx: [emerg] bind() to 192.0.2.1:9 failed (99: Cannot assign requested address)\n"
        ),
        "{err}"
    );
}

#[test]
fn a_port_in_use_is_tried_for_a_while_and_then_given_up() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let conf = format!(
        "pid nginx.pid; error_log error.log; events {{ }} http {{ access_log off;
         server {{ listen {addr}; listen unix:DIR/socket; }} }}"
    );
    let folder = Folder::new(&conf);
    // ports are excepted from a test, as the running process has them
    assert_eq!(folder.run(&["-t"]).0, Some(0));
    let began = Instant::now();
    let (code, _, err) = folder.run(&[]);
    assert_eq!(code, Some(1));
    assert!(began.elapsed() >= Duration::from_secs(2));
    let line = format!("nginx: [emerg] bind() to {addr} failed (98: Address already in use)\n");
    assert_eq!(
        err,
        line.repeat(5) + "nginx: [emerg] still could not bind()\n"
    );
    assert!(folder.read("error.log").contains("still could not bind()"));
    assert!(!folder.path().join("nginx.pid").exists());
    assert!(!folder.path().join("socket").exists());
}

#[test]
fn signals_for_nobody() {
    let folder = Folder::new("pid nginx.pid; events { }");
    let missing = "nginx: [error] open() \"DIR/nginx.pid\" failed (2: No such file or directory)\n";
    for signal in ["stop", "quit", "reload", "reopen"] {
        assert_eq!(
            folder.run(&["-s", signal]),
            (Some(1), String::new(), missing.into())
        );
    }
    fs::write(folder.path().join("nginx.pid"), "x1\n").unwrap();
    let invalid = "nginx: [error] invalid PID number \"x1\" in \"DIR/nginx.pid\"\n";
    assert_eq!(
        folder.run(&["-s", "stop"]),
        (Some(1), String::new(), invalid.into())
    );
    // above what the kernel gives
    fs::write(folder.path().join("nginx.pid"), "2147483646\n").unwrap();
    let nobody = "nginx: [alert] kill(2147483646, 1) failed (3: No such process)\n";
    assert_eq!(
        folder.run(&["-s", "reload"]),
        (Some(1), String::new(), nobody.into())
    );
    assert!(folder.read("first.log").contains("[notice]"));
}

#[test]
fn a_daemon_serves_when_the_starter_ends() {
    let port = Port::reserve();
    let addr = SocketAddr::from(([127, 0, 0, 1], port.number()));
    let folder = Folder::new(&format!(
        "pid nginx.pid; error_log error.log notice; events {{ }}
         http {{ access_log off; server {{ listen {addr}; return 200 $pid; }} }}"
    ));
    assert_eq!(folder.run(&[]), (Some(0), String::new(), String::new()));
    // no waiting: the pid file is there and the worker serves
    let pid = folder.read("nginx.pid");
    let number: i32 = pid.trim().parse().unwrap();
    let worker = worker_of(Pid::from_raw(number));
    assert_eq!(client::get(addr, "/", "h").text(), worker.to_string());
    let shown = title(Pid::from_raw(number));
    assert!(shown.starts_with("couloir: master process /"), "{shown}");
    assert_eq!(title(worker), "couloir: worker process");
    let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap();
    let session = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .nth(3)
        .unwrap();
    assert_eq!(session, pid.trim(), "a session of its own");
    assert_eq!(
        fs::read_link(format!("/proc/{number}/fd/0")).unwrap(),
        Path::new("/dev/null")
    );
    assert_eq!(
        fs::read_link(format!("/proc/{number}/fd/1")).unwrap(),
        Path::new("/dev/null")
    );

    // a second one finds the port taken, says so and leaves the first alone
    let (code, _, err) = folder.run(&[]);
    assert_eq!(code, Some(1));
    assert!(
        err.ends_with("nginx: [emerg] still could not bind()\n"),
        "{err}"
    );
    assert_eq!(folder.read("nginx.pid"), pid);

    assert_eq!(
        folder.run(&["-s", "quit"]),
        (Some(0), String::new(), String::new())
    );
    let gone = wait_for(DEADLINE, || {
        kill(Pid::from_raw(number), None).is_err().then_some(())
    });
    assert!(gone.is_some(), "{}", folder.read("error.log"));
    assert!(!folder.path().join("nginx.pid").exists());
    let log = folder.read("error.log");
    for line in [" gracefully shutting down", " exiting", " exit"] {
        assert!(log.contains(line), "{line:?} is not in\n{log}");
    }
}

#[test]
fn a_failure_after_leaving_the_terminal_is_still_the_starters() {
    let port = Port::reserve().number();
    let folder = Folder::new(&format!(
        "pid no/folder; error_log error.log; events {{ }}
         http {{ access_log off; server {{ listen 127.0.0.1:{port}; }} }}"
    ));
    let (code, _, err) = folder.run(&[]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains("[emerg] open() \"DIR/no/folder\" failed (2: No such file or directory)"),
        "{err}"
    );
    // the process that failed may still be on its way out
    let free = wait_for(DEADLINE, || TcpListener::bind(("127.0.0.1", port)).ok());
    assert!(free.is_some(), "somebody is left");
}

/// What Debian's packages write into the configuration of a host that uses none of it.
#[test]
fn modules_that_nothing_uses_are_noted() {
    const LOAD: &str = "load_module modules/ngx_mail_module.so; load_module modules/ngx_stream_module.so; load_module modules/ngx_http_image_filter_module.so; load_module modules/ngx_http_gzip_module.so;";
    let folder = Folder::new(&format!("{LOAD} events {{ }} http {{ }}"));
    let (code, _, err) = folder.run(&["-t"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(!err.contains('['), "{err}");
    for (used, says, help) in [
        (
            "stream { }",
            "unknown directive \"stream\" in ",
            "are named by \"load_module\" and not built in",
        ),
        (
            "http { image_filter off; }",
            "the \"image_filter\" directive is not supported: ",
            "",
        ),
    ] {
        folder.write(&format!("{LOAD} events {{ }} {used}"));
        let (code, _, err) = folder.run(&["-t"]);
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains(says) && err.contains(help), "{err}");
    }
}

/// The place is on the second line where nginx names none.
#[test]
fn our_place_stands_below_nginxs_line() {
    let folder = Folder::new("events { }\nhttp { server {\n  return 200 $nosuch; } }");
    let (_, _, err) = folder.run(&["-t"]);
    let lines: Vec<_> = err.lines().take(2).collect();
    assert_eq!(
        lines,
        [
            "nginx: [emerg] unknown \"nosuch\" variable",
            "  --> DIR/nginx.conf:3"
        ]
    );
    let log = folder.read("first.log");
    assert!(
        log.contains("[emerg]") && log.contains("it stands in "),
        "{log}"
    );
}

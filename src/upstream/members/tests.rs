use super::super::group::tests::spec;
use super::super::{AttemptVerdict, Group, KeepaliveConf, PeerStateStore};
use super::*;
use std::time::Duration;

fn group(servers: Vec<ServerSpec>, registry: &PeerStateStore) -> Group {
    let (balance, keepalive) = (super::super::round_robin::RoundRobin, KeepaliveConf::off());
    Group::changeable(
        "app",
        servers,
        balance,
        keepalive,
        registry,
        Clock::system(),
    )
    .unwrap()
}

fn names(group: &Group) -> Vec<String> {
    let held = group.members();
    held.peers().map(|peer| peer.name.to_string()).collect()
}

fn named(service: Option<&str>) -> (ServerSpec, ResolveName) {
    let name = ResolveName {
        host: "App.test".into(),
        port: 8080,
        service: service.map(str::to_owned),
    };
    let mut spec = ServerSpec::new("app.test", Vec::new());
    spec.resolve = Some(name.clone());
    (spec, name)
}

fn found(addrs: Vec<FoundAddr>) -> FoundName {
    FoundName {
        addrs,
        until: Instant::now() + Duration::from_secs(60),
    }
}

fn plain(last: u8) -> FoundAddr {
    FoundAddr {
        addr: ([127, 0, 0, last], 1).into(),
        service: None,
        backup: false,
    }
}

fn add(group: &Group, server: ServerSpec) -> u32 {
    let added = group.edit(|servers| Ok::<_, io::Error>(servers.add(server)));
    added.unwrap().unwrap()
}

#[test]
fn a_request_keeps_its_peers_and_peers_keep_their_state() {
    let group = group(vec![spec(1), spec(2)], &PeerStateStore::new());
    let mut r = group.start();
    let picked = group.pick(&mut r).unwrap();
    let first = picked.peer().state.clone();
    let removed = group.edit(|servers| {
        servers.rows.remove(0);
        Ok::<_, io::Error>(())
    });
    assert!(removed.unwrap().is_ok());
    assert_eq!(names(&group), ["127.0.0.1:2"]);
    assert_eq!(&*picked.peer().name, "127.0.0.1:1");
    picked.done(AttemptVerdict::Failed, &mut r);
    assert_eq!(first.conns.load(Relaxed), 0);
    // what has been tried counts in the peers of before
    assert_eq!(&*group.pick(&mut r).unwrap().peer().name, "127.0.0.1:2");

    let state = |group: &Group| group.members().peers().next().unwrap().state.clone();
    let second = state(&group);
    assert_eq!(add(&group, spec(3)), 2, "numbers are not given twice");
    assert!(Arc::ptr_eq(&second, &state(&group)));
    assert_eq!(
        group
            .load_balancer()
            .unwrap()
            .backends()
            .get_backend()
            .len(),
        2
    );
}

#[test]
fn what_fails_changes_nothing() {
    let group = group(vec![spec(1)], &PeerStateStore::new());
    let failed = group.edit(|servers| {
        servers.rows.clear();
        Err::<(), _>(io::Error::other("no"))
    });
    assert!(failed.unwrap().is_err());
    let long = ServerSpec::new("x", vec![PeerAddr::Unix("/x".repeat(100).into())]);
    let refused = group.edit(|servers| Ok::<_, io::Error>(servers.add(long)));
    assert!(refused.unwrap().is_err());
    assert_eq!(names(&group), ["127.0.0.1:1"]);
    let unwritable = group.live().unwrap();
    unwritable.keep_in("/proc/none/app.state".into());
    let refused = group.edit(|servers| Ok::<_, io::Error>(servers.add(spec(2))));
    assert!(refused.unwrap().is_err());
    assert_eq!(names(&group), ["127.0.0.1:1"]);
}

#[test]
fn addresses_of_a_name_come_and_go() {
    let registry = PeerStateStore::new();
    let (server, name) = named(None);
    let app = group(vec![server.clone()], &registry);
    assert!(app.pick(&mut app.start()).is_none());
    app.set_found(&name, found(vec![plain(1), plain(2)]));
    assert_eq!(names(&app), ["127.0.0.1:8080", "127.0.0.2:8080"]);
    let ids = |group: &Group| -> Vec<_> {
        let held = group.members();
        held.peers().map(|peer| (peer.id, peer.parent)).collect()
    };
    assert_eq!(ids(&app), [(1, Some(0)), (2, Some(0))]);
    app.set_found(&name, found(vec![plain(2), plain(3)]));
    assert_eq!(ids(&app), [(2, Some(0)), (3, Some(0))]);

    // the next configuration begins with them, at its own port
    let mut moved = server.clone();
    moved.resolve.as_mut().unwrap().port = 9090;
    let next = group(vec![moved], &registry);
    assert_eq!(names(&next), ["127.0.0.2:9090", "127.0.0.3:9090"]);
    // and a server added with a name that is known
    add(&app, server);
    assert_eq!(names(&app).len(), 4);
    app.set_found(&name, found(Vec::new()));
    assert!(names(&app).is_empty());
}

#[test]
fn srv_records_weigh_and_back_up() {
    let (server, name) = named(Some("http"));
    let group = group(vec![server], &PeerStateStore::new());
    let record = |last: u8, weight, backup| FoundAddr {
        addr: ([127, 0, 0, last], 80).into(),
        service: Some(ServiceRecord {
            name: format!("{last}.test").into(),
            weight,
        }),
        backup,
    };
    let twice = record(1, 5, false);
    group.set_found(&name, found(vec![twice.clone(), twice, record(2, 7, true)]));
    let held = group.members();
    let seen: Vec<_> = held
        .peers()
        .map(|p| (&*p.server, p.weight, p.backup))
        .collect();
    assert_eq!(
        seen,
        [
            ("1.test", 5, false),
            ("1.test", 5, false),
            ("2.test", 7, true)
        ]
    );
    let mut states: Vec<_> = held.peers().map(|p| p.state.id).collect();
    states.dedup();
    assert_eq!(states.len(), 3, "equal records are peers of their own");
}

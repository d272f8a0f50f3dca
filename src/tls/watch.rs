//! Looks at files that are to be read anew when they change: certificates, keys and what goes with them.

use super::load::Version;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Files that are read together, as they were before they were read.
#[derive(Clone)]
pub struct Group {
    /// How often they are looked at.
    pub interval: Duration,
    /// The files.
    pub files: Vec<(PathBuf, Option<Version>)>,
}

/// What is looked at, and what was seen.
#[derive(Default)]
pub struct Watch {
    groups: Vec<Seen>,
}

struct Seen {
    group: Group,
    due: Instant,
    /// Versions that are new: taken up once they are the same at the next look, so that a pair is whole.
    settling: Option<Vec<Option<Version>>>,
}

impl Watch {
    /// Looks at these groups from now on.
    pub fn new(groups: impl Iterator<Item = Group>) -> Watch {
        let now = Instant::now();
        let seen = |group: Group| Seen {
            due: now + group.interval,
            group,
            settling: None,
        };
        Watch {
            groups: groups.map(seen).collect(),
        }
    }

    /// When there is something to look at.
    pub fn due(&self) -> Option<Instant> {
        self.groups.iter().map(|s| s.due).min()
    }

    /// Looks at what is due; returns all files of the groups of which one has changed.
    pub fn look(&mut self, now: Instant) -> BTreeSet<PathBuf> {
        let mut changed = BTreeSet::new();
        // many servers may share a file
        let mut versions: HashMap<PathBuf, Option<Version>> = HashMap::new();
        for seen in self.groups.iter_mut().filter(|s| s.due <= now) {
            seen.due = now + seen.group.interval;
            let files = &mut seen.group.files;
            let mut version = |path: &PathBuf| match versions.get(path) {
                Some(v) => *v,
                None => {
                    let v = Version::of(path);
                    versions.insert(path.clone(), v);
                    v
                }
            };
            let present: Vec<_> = files.iter().map(|(path, _)| version(path)).collect();
            if files.iter().map(|(_, v)| v).eq(&present) {
                seen.settling = None;
            } else if seen.settling.as_ref() != Some(&present) {
                seen.settling = Some(present);
            } else {
                for ((path, was), is) in files.iter_mut().zip(present) {
                    *was = is;
                    changed.insert(path.clone());
                }
                seen.settling = None;
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_taken_up_once_they_have_settled() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let interval = Duration::from_secs(1);
        let group = |files: &[&PathBuf]| Group {
            interval,
            files: files
                .iter()
                .map(|p| ((*p).clone(), Version::of(p)))
                .collect(),
        };
        std::fs::write(&a, "1").unwrap();
        let mut watch = Watch::new([group(&[&a, &b]), group(&[&b])].into_iter());
        let mut now = Instant::now();
        let mut look = |watch: &mut Watch| {
            now += 2 * interval;
            watch.look(now)
        };
        assert!(look(&mut watch).is_empty());
        std::fs::write(&a, "22").unwrap();
        assert!(look(&mut watch).is_empty(), "not settled");
        std::fs::write(&b, "1").unwrap();
        assert!(look(&mut watch).is_empty(), "the other one follows");
        assert_eq!(look(&mut watch), [a.clone(), b.clone()].into());
        assert!(look(&mut watch).is_empty(), "told once");
        std::fs::remove_file(&b).unwrap();
        look(&mut watch);
        assert_eq!(look(&mut watch), [a, b].into());
        assert!(watch.due().is_some() && Watch::default().due().is_none());
    }
}

//! `allow` and `deny`.

use crate::config::addr::{Cidr, parse_cidr};
use crate::config::{Result, Statement};
use crate::contract::*;
use std::net::IpAddr;
use std::sync::Arc;

/// Access by the client's address.
pub struct Access;

/// The rules of a block, in order.
#[derive(Default, Clone)]
pub struct AccessConf {
    rules: Option<Vec<Rule>>,
}

#[derive(Clone, Debug)]
struct Rule {
    net: Net,
    deny: bool,
    /// `FILE:LINE`.
    at: Arc<str>,
}

#[derive(Clone, Copy, Debug)]
enum Net {
    All,
    Unix,
    Cidr(Cidr),
}

impl Conf for AccessConf {
    fn inherit(&mut self, outer: &Self) {
        crate::inherit!(self, outer; rules);
    }
}

const ANY_HTTP_LIMIT_EXCEPT: Place = Place::ANY_HTTP.or(Place::LIMIT_EXCEPT);

impl Module for Access {
    const NAME: &'static str = "http_access";
    type Conf = AccessConf;
    const DIRECTIVES: &'static [Directive<AccessConf>] = &[
        Directive::new(
            "allow",
            ANY_HTTP_LIMIT_EXCEPT,
            Args::Exactly(1),
            "`allow address|network|unix:|all;` Lets these clients in; the first rule that fits decides.",
            |c, s, b| rule(c, s, b, false),
        ),
        Directive::new(
            "deny",
            ANY_HTTP_LIMIT_EXCEPT,
            Args::Exactly(1),
            "`deny address|network|unix:|all;` Refuses these clients with 403; the first rule that fits decides.",
            |c, s, b| rule(c, s, b, true),
        ),
    ];

    fn attach(conf: &Arc<AccessConf>, on: &mut Hooks) -> Result<()> {
        if let Some(rules) = &conf.rules {
            let v4 = rules.iter().any(|r| {
                matches!(
                    r.net,
                    Net::All
                        | Net::Cidr(Cidr {
                            addr: IpAddr::V4(_),
                            ..
                        })
                )
            });
            on.on(
                Phase::Access,
                Rules {
                    list: rules.clone().into(),
                    v4,
                },
            );
        }
        Ok(())
    }
}

struct Rules {
    list: Box<[Rule]>,
    /// Whether there are rules for IPv4, by which mapped addresses are then judged.
    v4: bool,
}

impl Handler for Rules {
    fn handle<'r>(&'r self, r: &'r mut Request) -> Next<'r> {
        let rule = self.judge(r.remote.ip());
        r.explain(|| match rule {
            Some(rule) if rule.deny => Step::new("access", "a deny rule fits").at(&rule.at),
            Some(rule) => Step::new("access", "an allow rule fits").at(&rule.at),
            None => Step::new("access", "no allow or deny rule fits").by("allow"),
        });
        match rule.map(|rule| rule.deny) {
            None => Next::Continue,
            Some(false) => Next::Allow,
            Some(true) => {
                if r.core().satisfy == Satisfy::All {
                    r.error(
                        crate::log::Level::Error,
                        format_args!("access forbidden by rule"),
                    );
                }
                Next::Status(403)
            }
        }
    }
}

impl Rules {
    /// The rule that decides; `None` where none fits.
    fn judge(&self, ip: Option<IpAddr>) -> Option<&Rule> {
        let ip = match ip {
            Some(IpAddr::V6(v6)) if self.v4 => {
                Some(v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4))
            }
            ip => ip,
        };
        self.list.iter().find(|rule| match (rule.net, &ip) {
            (Net::All, _) => true,
            (Net::Unix, ip) => ip.is_none(),
            (Net::Cidr(c), Some(ip)) => c.contains(ip),
            (Net::Cidr(_), None) => false,
        })
    }
}

fn rule(c: &mut AccessConf, s: &Statement, b: &mut Build, deny: bool) -> Result<()> {
    let net = match s.arg(0) {
        b"all" => Net::All,
        b"unix:" => Net::Unix,
        text => match parse_cidr(text) {
            Some((cidr, low_bits)) => {
                if low_bits {
                    b.warn(s.warn_at(
                        0,
                        format!(
                            "low address bits of {} are meaningless",
                            String::from_utf8_lossy(text)
                        ),
                    ));
                }
                Net::Cidr(cidr)
            }
            None => return Err(s.invalid_parameter(0)),
        },
    };
    c.rules.get_or_insert_default().push(Rule {
        net,
        deny,
        at: s.place().into(),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &[(&str, bool)]) -> Rules {
        let list: Vec<Rule> = text
            .iter()
            .map(|(net, deny)| {
                let net = match *net {
                    "all" => Net::All,
                    "unix:" => Net::Unix,
                    n => Net::Cidr(parse_cidr(n.as_bytes()).unwrap().0),
                };
                Rule {
                    net,
                    deny: *deny,
                    at: "".into(),
                }
            })
            .collect();
        let v4 = list.iter().any(|r| {
            matches!(
                r.net,
                Net::All
                    | Net::Cidr(Cidr {
                        addr: IpAddr::V4(_),
                        ..
                    })
            )
        });
        Rules {
            list: list.into(),
            v4,
        }
    }

    fn denied(rules: &Rules, ip: Option<IpAddr>) -> Option<bool> {
        rules.judge(ip).map(|rule| rule.deny)
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let r = rules(&[
            ("10.0.0.1", true),
            ("10.0.0.0/8", false),
            ("unix:", false),
            ("all", true),
        ]);
        let ip = |s: &str| Some(s.parse().unwrap());
        assert_eq!(denied(&r, ip("10.0.0.1")), Some(true));
        assert_eq!(denied(&r, ip("10.1.2.3")), Some(false));
        assert_eq!(denied(&r, ip("192.0.2.1")), Some(true));
        assert_eq!(denied(&r, ip("::ffff:10.1.2.3")), Some(false));
        assert_eq!(denied(&r, None), Some(false));
        let only6 = rules(&[("::/0", true)]);
        assert_eq!(denied(&only6, ip("10.0.0.1")), None);
        assert_eq!(denied(&only6, ip("::ffff:10.0.0.1")), Some(true));
        assert_eq!(denied(&only6, None), None);
    }
}

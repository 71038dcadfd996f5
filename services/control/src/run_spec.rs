//! A stored spec and what was looked up for it become what the host is asked to run. Pure.

use model::{
    LayerId, Route, RouteTarget, RunSpec, Transport, VpsName, VpsSpec,
    run::{Link, Ready, Root},
    spec::ReadySpec,
};

/// Where the network service has the names of a tenant's VPSs.
const DOMAIN: &str = "vps.internal";

/// The run spec of one start.
pub fn run_spec(name: &VpsName, spec: &VpsSpec, layers: &[LayerId], link: &Link) -> RunSpec {
    RunSpec {
        name: name.clone(),
        hostname: spec.hostname.clone(),
        root: Root::Layers(layers.to_vec()),
        command: spec.command.clone(),
        env: spec.env.clone(),
        cwd: spec.cwd.clone(),
        user: spec.user.clone(),
        files: spec.files.clone(),
        logs: spec.logs.clone(),
        volumes: spec.volumes.clone(),
        directories: spec.directories.clone(),
        secrets: spec.secrets.clone(),
        limits: spec.limits.clone(),
        link: Some(link.clone()),
        resolvers: vec![Link::GATEWAY.into()],
        search: Some(DOMAIN.to_owned()),
        setuid: spec.setuid,
        nesting: spec.nesting,
        ready: ready(spec),
        ready_check: spec.ready_check.clone(),
        stop: spec.stop.clone(),
    }
}

/// When a start of it is done.
pub fn ready(spec: &VpsSpec) -> Ready {
    match spec.ready {
        ReadySpec::Notify => Ready::Notify,
        ReadySpec::Listen(Some(port)) => Ready::Listen(port),
        ReadySpec::Listen(None) => {
            // Nobody sees when a port of UDP is bound.
            let listens =
                |(route, target): (&Route, &RouteTarget)| (route.listen().1 == Transport::Tcp).then_some(target.port);
            let routed = spec.routes.iter().find_map(listens);
            let admitted = || spec.admits.values().flatten().min().copied();
            routed.or_else(admitted).map_or(Ready::Started, Ready::Listen)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{link, spec};
    use model::run::ReadyCheck;

    #[test]
    fn ready_follows_the_spec_then_the_routes() {
        let mut site = spec("acme", &[("http://a.example", 8080)]);
        let port = |site: &VpsSpec| run_spec(&"a".parse().unwrap(), site, &[], &link()).ready;
        assert_eq!(port(&site), Ready::Listen(8080));
        site.ready = ReadySpec::Listen(Some(9000));
        assert_eq!(port(&site), Ready::Listen(9000));
        site.ready = ReadySpec::Notify;
        assert_eq!(port(&site), Ready::Notify);
        site.ready = ReadySpec::Listen(None);
        site.admits.insert("web".parse().unwrap(), [5433, 5432].into());
        assert_eq!(port(&site), Ready::Listen(8080));
        site.routes.clear();
        assert_eq!(port(&site), Ready::Listen(5432));
        site.admits.clear();
        assert_eq!(port(&site), Ready::Started);
    }

    #[test]
    fn everything_a_person_wrote_arrives() {
        let mut site = spec("acme", &[]);
        site.hostname = Some("web".parse().unwrap());
        site.limits.memory = Some(1 << 20);
        site.env.insert("A".into(), "b".into());
        site.files.insert("/etc/a".into(), "b".into());
        site.setuid = false;
        site.nesting = true;
        site.logs = vec!["/var/log/*.log".into()];
        let check = ReadyCheck { command: vec!["true".into()], interval_ms: 1, timeout_ms: 2 };
        site.ready_check = Some(check);
        let layer = LayerId::try_from("0".repeat(64)).unwrap();
        let run = run_spec(&"a".parse().unwrap(), &site, std::slice::from_ref(&layer), &link());
        assert_eq!(run.root, Root::Layers(vec![layer]));
        assert_eq!(run.hostname, site.hostname);
        assert_eq!((run.limits, run.env, run.files), (site.limits, site.env, site.files));
        assert_eq!((run.command, run.cwd, run.user, run.stop), (site.command, site.cwd, site.user, site.stop));
        assert_eq!((run.ready_check, run.logs), (site.ready_check, site.logs));
        assert_eq!((run.setuid, run.nesting), (false, true));
        assert_eq!(run.link, Some(link()));
        assert_eq!(run.resolvers, [Link::GATEWAY]);
    }
}

//! Values that tests share.

use model::{
    Phase, VpsSpec, VpsStatus,
    run::{Link, Stop},
    spec::{Idle, IdleAction, ReadySpec, Restart},
};

/// A spec of `tenant` with `routes`.
pub fn spec(tenant: &str, routes: &[(&str, u16)]) -> VpsSpec {
    VpsSpec {
        tenant: tenant.parse().unwrap(),
        image: "debian:nginx-light".parse().unwrap(),
        command: vec!["nginx".to_owned()],
        cwd: "/".to_owned(),
        user: "root".to_owned(),
        hostname: None,
        env: Default::default(),
        volumes: Default::default(),
        files: Default::default(),
        directories: Default::default(),
        logs: Vec::new(),
        secrets: Default::default(),
        routes: routes.iter().map(|(route, port)| (route.parse().unwrap(), (*port).into())).collect(),
        ignore: Default::default(),
        admits: Default::default(),
        reaches: Default::default(),
        labels: Default::default(),
        wants: Default::default(),
        egress: None,
        limits: Default::default(),
        ids: 65_536,
        idle: Idle::After { after_ms: 60_000, then: IdleAction::Stop, quiet_ms: None },
        busy: Vec::new(),
        jobs: Default::default(),
        restart: Restart::OnFailure,
        ready: ReadySpec::Listen(None),
        ready_check: None,
        start_deadline_ms: 30_000,
        stop: Stop::default(),
        setuid: true,
        nesting: false,
    }
}

/// What the host says of a VPS.
pub fn status(run: u64, phase: Phase) -> VpsStatus {
    VpsStatus {
        name: "blog".parse().unwrap(),
        phase,
        run,
        designated: false,
        tenant: None,
        pid: None,
        since_ms: 0,
        start_ms: None,
        memory: None,
        processes: None,
        cpu_us: None,
        prepared: false,
        steps: None,
    }
}

/// A link.
pub fn link() -> Link {
    Link::new("10.80.0.17".parse().unwrap(), "fd00::a50:11".parse().unwrap())
}

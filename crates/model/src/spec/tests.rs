use proptest::{collection::btree_map, option, prelude::*};

use super::*;
use crate::{
    ClientAddress, JobName,
    limits::parse_bytes,
    run::{Directory, ReadyCheck, SIGNALS, Volume},
    schedule::Schedule,
};

const BLOG: &str = r#"
tenant = "acme"

[vps.blog]
image = "debian:nginx-light"
command = ["nginx", "-g", "daemon off;"]
routes = { "http://blog.example.org:8080" = 80 }
limits = { memory = "512MiB", cpu = 1.5, processes = 200 }
idle = { after = "3s", then = "freeze" }
files = { "/etc/nginx/conf.d/a.conf" = """
server { listen 80; }
""" }
"#;

/// What a person reads about a bad file.
fn problems(text: &str) -> String {
    let problems = parse("s.toml", text).expect_err("must be refused");
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

/// The same about a VPS with these lines, which begin in line 5 of the file.
fn in_vps(lines: &str) -> String {
    problems(&format!("tenant = \"acme\"\n[vps.blog]\nimage = \"debian:\"\ncommand = [\"true\"]\n{lines}\n"))
}

#[test]
fn a_spec_is_read() {
    let spec = parse("blog.toml", BLOG).expect("a good spec");
    let blog = &spec.vps["blog"];
    assert_eq!(
        blog.limits,
        Limits { memory: Some(512 << 20), cpu_millis: Some(1500), processes: Some(200), disk: None }
    );
    assert_eq!(blog.idle, Idle::After { after_ms: 3000, then: IdleAction::Freeze, quiet_ms: None });
    assert_eq!(blog.files["/etc/nginx/conf.d/a.conf"], "server { listen 80; }\n");
    assert_eq!(blog.ready, ReadySpec::Listen(None));
    assert_eq!(blog.start_deadline_ms, 30_000);
    assert!(blog.setuid && !blog.nesting);
    assert_eq!(blog.ids, 65_536);
}

#[test]
fn what_is_not_written_has_its_default() {
    let read = |lines: &str| {
        let text = format!("tenant = \"a\"\n[vps.b]\nimage = \"debian:\"\ncommand = [\"true\"]\n{lines}");
        parse("s.toml", &text).expect("a good spec").vps["b"].clone()
    };
    assert_eq!(read("").idle, Idle::Never);
    let idle = Idle::After { after_ms: 600_000, then: IdleAction::Stop, quiet_ms: None };
    assert_eq!(read("routes = { \"tcp://*:1\" = 1 }").idle, idle);
    assert_eq!(read("idle = { after = \"10m\" }").idle, idle);
    assert_eq!(read("stop = { grace = \"0s\" }").stop, Stop { signal: 15, grace_ms: 0 });
    let several = read("routes = { \"tcp://*:9\" = 99, \"tcp://*:1\" = 11 }");
    assert_eq!(several.ready, ReadySpec::Listen(Some(99)), "the first in the file");
}

#[test]
fn routes_say_what_servers_see_of_clients() {
    let read = |lines: &str| {
        let text = format!("tenant = \"a\"\n[vps.b]\nimage = \"debian:\"\ncommand = [\"true\"]\n{lines}");
        parse("s.toml", &text).map(|spec| spec.vps["b"].clone())
    };
    let spec =
        read("routes = { \"tcp://*:25\" = { port = 2525, client = \"proxy-v2\" }, \"http://a\" = { port = 80 } }");
    let targets: Vec<_> = spec.expect("a good spec").routes.into_values().collect();
    let proxy = RouteTarget { port: 2525, client: ClientAddress::ProxyV2 };
    assert!(targets.contains(&proxy) && targets.contains(&RouteTarget::from(80)), "{targets:?}");
    let told = in_vps(
        "routes = { \"http://a\" = { port = 80, client = \"proxy-v1\" }, \"tcp://*:1\" = { client = \"x\", proxy_protocol = true } }",
    );
    assert!(told.contains("`client` is for tcp:// and udp:// routes"), "{told}");
    assert!(told.contains("`port` is missing in [vps.blog.routes.tcp://*:1]"), "{told}");
    assert!(told.contains("`client` cannot be \"x\""), "{told}");
    assert!(told.contains("write: client = \"proxy-v2\""), "{told}");
}

#[test]
fn whom_it_ignores_is_said_exactly() {
    let told = in_vps("routes = { \"tcp://*:1\" = 1 }\nignore = { user_agent = [\"\"], from = [\"203.0.113.9/24\"] }");
    assert!(told.contains("s.toml:6:1  `ignore.user_agent` needs an http:// route"), "{told}");
    assert!(told.contains("`` is not a pattern: 1 to 64 visible ASCII characters"), "{told}");
    assert!(told.contains("write \"203.0.113.0/24\""), "{told}");
    assert!(in_vps("ignore = { from = [\"::1\"] }").contains("nothing leads to this VPS"));
    assert!(in_vps("routes = { \"http://a\" = 1 }\nignore = {}").contains("`ignore` names nobody"));
}

#[test]
fn all_problems_are_told_with_their_places() {
    let told = problems(
        "tenant = \"Acme\"\n[vps.blog]\nimage = \"nginx\"\nmemory = \"512MiB\"\nclass = {}\ncomand = []\n\n[vps.db]\nimage = \"debian:redis\"\ncommand = [\"x\"]\nroutes = { \"http://A\" = 80, \"http://a\" = 81 }\nlimits = { memory = 5 }\n",
    );
    let expected = "\
s.toml:1:10  `Acme` is not a name: use a-z, 0-9 and `-`, beginning and ending with a letter or digit
  1 | tenant = \"Acme\"
    |          ^^^^^^
s.toml:3:9  `nginx` names no image: write \"debian:PACKAGE[,PACKAGE]\", \"tar:FILE\" or \"dir:DIRECTORY\"
  3 | image = \"nginx\"
    |         ^^^^^^^
s.toml:4:1  unknown field `memory` in [vps.blog]
  4 | memory = \"512MiB\"
    | ^^^^^^ write: limits = { memory = \"512MiB\" }
s.toml:5:1  `class` is not there yet in [vps.blog]
  5 | class = {}
    | ^^^^^ every VPS is isolated by namespaces
s.toml:6:1  unknown field `comand` in [vps.blog]
  6 | comand = []
    | ^^^^^^ did you mean `command`?
s.toml:11:29  route http://a belongs to vps \"db\" already
  11 | routes = { \"http://A\" = 80, \"http://a\" = 81 }
     |                             ^^^^^^^^^^ a route leads to one VPS
s.toml:12:21  `memory` cannot be a number
  12 | limits = { memory = 5 }
     |                     ^ expected a size such as \"512MiB\" or \"2GiB\"
";
    assert_eq!(told, expected);
}

#[test]
fn what_is_not_toml_is_told_by_its_place() {
    let told = problems("tenant = \"acme\ntenant = 3\n[vps.a]\nx = =\n[vps.a]\n");
    for part in ["s.toml:1:15  not TOML", "s.toml:2:1  not TOML: duplicate key", "s.toml:5:6  not TOML: duplicate key"]
    {
        assert!(told.contains(part), "{part} is not in\n{told}");
    }
}

#[test]
fn a_table_written_twice_is_told_once() {
    let told =
        problems("tenant = \"a\"\n[vps.x]\nimage = 1\n[vps.x]\nimage = 1\nuser = \"a\"\n[vps.y]\nuser = 1\nuser = 2\n");
    let places: Vec<_> = told.lines().filter(|line| line.starts_with("s.toml")).collect();
    assert_eq!(places, ["s.toml:4:6  not TOML: duplicate key", "s.toml:9:1  not TOML: duplicate key"], "{told}");
}

#[test]
fn what_is_missing_is_told() {
    let told = problems("[vps.db]\n");
    assert!(told.contains("s.toml  `tenant` is missing"), "{told}");
    assert!(told.contains("s.toml:1:6  `image` is missing in [vps.db]"), "{told}");
    assert!(told.contains("write: command = …, a list"), "{told}");
    assert!(problems("tenant = \"a\"").contains("write: [vps.NAME]"));
}

#[test]
fn each_illegal_value_is_refused() {
    for (lines, says) in [
        ("routes = { \"https://a.b\" = 80 }", "`https` routes are not there yet"),
        ("routes = { \"htp://x\" = 80 }", "`htp://x` is not a route"),
        ("routes = { \"tcp://*:1\" = 70000 }", "cannot be 70000"),
        ("limits = { memory = \"512MB\" }", "`512MB` is not a size"),
        ("limits = { memory = \"1KiB\" }", "too little"),
        ("limits = { memory = \"99999999999TiB\" }", "too large"),
        ("limits = { cpu = 0 }", "expected a number from 0.01 to 1024"),
        ("limits = { cpu = nan }", "expected a number"),
        ("limits = { io = 1 }", "`io` is not there yet"),
        ("ids = 100000", "write: ids = 131072"),
        ("ids = 9223372036854775807", "cannot be 9223372036854775807"),
        ("idle = \"newer\"", "expected \"never\""),
        ("idle = { then = \"stop\" }", "`after` is missing in [vps.blog.idle]"),
        ("idle = { after = \"5\" }", "is not a time such as"),
        ("idle = { after = \"1s\", quiet = \"5\" }", "`5` is not a time"),
        ("idle = 10", "`idle` cannot be a number"),
        ("ready = { run = [] }", "`run` names no program"),
        ("ready = { listen = 1, timeout = \"1s\" }", "`timeout` is about `run`"),
        ("ready = { run = [\"x\"], interval = \"5ms\" }", "too short: at least \"10ms\""),
        ("ready = {}", "must say one thing"),
        ("ready = { listen = 1, notify = true }", "must say one thing"),
        ("ready = { notify = false }", "must say one thing"),
        ("stop = { signal = \"TERM\" }", "there are SIGHUP"),
        ("restart = \"sometimes\"", "\"on-failure\" or \"always\" or \"never\""),
        ("user = \"a b\"", "expected a user"),
        ("hostname = \"-x\"", "not a name"),
        ("cwd = \"tmp\"", "not an absolute path"),
        ("files = { \"/../x\" = \"\" }", "must not hold `..`"),
        ("files = { \"/x/\" = \"\" }", "is a directory"),
        ("env = { \"A=B\" = \"\" }", "without `=`"),
        ("env = { A = 1 }", "expected a text"),
        ("setuid = \"yes\"", "expected true or false"),
        ("ports = [80]", "write: routes ="),
        ("tenant = \"acme\"", "at the top of the file"),
        ("after = \"1s\"", "write: idle = { after = \"1s\" }"),
        ("env_file = \"x\"", "the content of `x` did not come"),
        ("[[vps.blog.job]]", "a job must say when it runs"),
        ("[volume.data]\nsize = \"1GiB\"", "no vps of this file uses the volume `data`"),
        ("volumes = { data = \"/srv\" }\n[volume.dat]\nsize = \"1GiB\"", "did you mean `data`?"),
        ("volumes = { data = \"srv\" }", "not an absolute path"),
        ("volumes = { data = \"/\" }", "cannot be the whole root"),
        ("volumes = { data = \"/proc/x\" }", "cannot be below /proc"),
        ("volumes = { a = \"/srv/\", b = \"/srv\" }", "volume `a` is at /srv already"),
        ("volumes = { Data = \"/srv\" }", "is not a name"),
        ("[vps.\"\"]", "must not be empty"),
        ("nesting = 1979-05-27", "cannot be a date"),
    ] {
        let told = in_vps(lines);
        assert!(told.contains(says), "{lines}: no {says:?} in\n{told}");
    }
    assert!(problems("tenant = \"a\"\nimage = \"debian:\"\n[vps.b]").contains("write it under [vps.NAME]"));
    assert!(problems("tenant = \"a\"\n[vps.b]\nimage = \"debian:\"\ncommand = []").contains("names no program"));
}

#[test]
fn sizes_are_bounded() {
    let text = "x".repeat(70 << 10);
    for (lines, says) in [
        (format!("files = {{ \"/a\" = \"{text}\" }}"), "`/a` is larger than 64 KiB"),
        (
            format!(
                "[vps.blog.files]\n{}",
                (0..3).map(|i| format!("\"/{i}\" = \"{}\"\n", &text[..60 << 10])).collect::<String>()
            ),
            "more than 128 KiB together",
        ),
        (format!("env = {{ A = \"{text}\" }}"), "`env` is larger than 64 KiB"),
        (
            format!("routes = {{ {} }}", (1..=65).map(|i| format!("\"tcp://*:{i}\" = 1, ")).collect::<String>()),
            "holds 65 entries, at most 64",
        ),
        (format!("# {}", "x".repeat(1 << 20)), "larger than 1 MiB"),
    ] {
        let told = in_vps(&lines);
        assert!(told.contains(says), "no {says:?} in\n{}", &told[..told.len().min(2000)]);
        assert!(told.len() < 20_000, "{} bytes about it", told.len());
    }
    let command = |count: usize, text: &str| {
        let command = format!("[{}]", vec![format!("\"{text}\""); count].join(","));
        problems(&format!("tenant = \"a\"\n[vps.b]\nimage = \"debian:\"\ncommand = {command}\n"))
    };
    assert!(command(257, "x").contains("257 values, at most 256"));
    assert!(command(2, &text).contains("longer than 64 KiB"));
}

/// Telling the place of each of 90,000 problems in a file of a mebibyte took minutes.
#[test]
fn a_file_full_of_problems_is_refused_at_once() {
    let many = (0..90_000).map(|i| format!("f{i} = 1\n")).collect::<String>();
    let begun = std::time::Instant::now();
    let told = parse("s.toml", &many).expect_err("unknown fields").len();
    assert!((50..=60).contains(&told), "{told} problems");
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn deep_nesting_is_refused_not_followed() {
    for text in [
        format!("tenant = {}1{}", "[".repeat(100_000), "]".repeat(100_000)),
        format!("tenant = {}", "{a=".repeat(100_000)),
        format!("a{} = 1", ".a".repeat(400_000)),
        format!("[a{}]", ".a".repeat(400_000)),
    ] {
        assert!(problems(&text).contains("not TOML"), "{}", &text[..20]);
    }
}

#[test]
fn the_schemas_in_docs_are_current() {
    for (file, schema) in [("spec", json_schema()), ("host", crate::host::json_schema())] {
        let path = format!("{}/../../docs/{file}.schema.json", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            std::fs::write(&path, &schema).expect("writing a schema");
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(written == schema, "docs/{file}.schema.json is old: UPDATE_SCHEMAS=1 cargo test -p bailiwick-model");
    }
}

#[test]
fn files_of_logs_are_absolute_patterns_outside_of_the_kernels() {
    for (pattern, told) in [
        ("a.log", "is not an absolute path"),
        ("/var/log/", "is a directory: write \"/var/log/*.log\""),
        ("/var/**/x", "`**` is not there"),
        ("/var//x", "must not hold `//`"),
        ("/var/../x", "must not hold `..`"),
        ("/proc/kmsg", "is below /proc, which is the kernel's"),
    ] {
        let text = in_vps(&format!("logs = [\"{pattern}\"]"));
        assert!(text.contains(told), "{pattern}: {text}");
    }
    assert!(in_vps("log_files = [\"/a\"]").contains("write: logs = ["));
}

fn text() -> impl Strategy<Value = String> {
    // Quotes, backslashes, line ends and control characters in every order.
    prop_oneof!["[a-z'\"\\\\\n\r\t#{}=]{0,12}", "\\PC{0,8}", "[^\u{0}]{0,6}"]
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?"
}

fn route() -> impl Strategy<Value = Route> {
    let text = prop_oneof![
        (1u16.., "[a-z]{1,5}(\\.[a-z]{1,5})?", "(/[a-z.]{0,3}[a-z])?")
            .prop_map(|(p, h, x)| format!("http://{h}:{p}{x}")),
        (1u16..).prop_map(|port| format!("tcp://*:{port}")),
        (1u16.., any::<[u8; 4]>()).prop_map(|(p, a)| format!("tcp://{}:{p}", std::net::Ipv4Addr::from(a))),
        (1u16.., any::<[u8; 16]>()).prop_map(|(p, a)| format!("tcp://[{}]:{p}", std::net::Ipv6Addr::from(a))),
    ];
    text.prop_map(|text| text.parse().expect("a route"))
}

fn target() -> impl Strategy<Value = RouteTarget> {
    let clients = ClientAddress::WORDS.map(|(_, client)| client).to_vec();
    (1u16.., prop::sample::select(clients)).prop_map(|(port, client)| RouteTarget { port, client })
}

fn ignore() -> impl Strategy<Value = Ignore> {
    let network =
        |(address, length): (u32, u8)| ipnet::IpNet::from(ipnet::Ipv4Net::new_assert(address.into(), length)).trunc();
    let networks = prop::collection::vec((any::<u32>(), 0u8..=32).prop_map(network), 0..3);
    (prop::collection::vec("[ -~]{1,9}", 0..3), networks).prop_map(|(agents, from)| Ignore {
        user_agent: agents.iter().map(|text| text.parse().expect("a pattern")).collect(),
        from,
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    (option::of((1u64 << 20)..(1 << 50)), option::of(10u32..=1_024_000), option::of(1u32..=4_194_304))
        .prop_map(|(memory, cpu_millis, processes)| Limits { memory, cpu_millis, processes, disk: memory })
}

fn neighbours() -> impl Strategy<Value = BTreeMap<Party, BTreeSet<u16>>> {
    let other = "@?[a-z]{5}".prop_map(|name| name.parse().expect("a name"));
    btree_map(other, prop::collection::btree_set(1u16.., 1..3), 0..3)
}

fn job() -> impl Strategy<Value = Job> {
    let schedule = prop_oneof![
        (1000u64..31_622_400_000).prop_map(Schedule::Every),
        prop::sample::select(vec!["00:00", "03:30", "23:59"])
            .prop_map(|text| Schedule::At(text.parse().expect("a time"))),
        prop::sample::select(vec!["* * * * *", "*/5 3 1,2 * 1-5"])
            .prop_map(|t| Schedule::Cron(t.parse().expect("a line"))),
    ];
    let run = prop::collection::vec(text(), 0..3);
    (schedule, "[a-z]{1,5}", run, option::of("[a-z]{1,5}"), 100u64..31_622_400_000).prop_map(
        |(schedule, program, more, user, timeout_ms)| Job {
            schedule,
            run: std::iter::once(program).chain(more).collect(),
            user,
            timeout_ms,
        },
    )
}

prop_compose! {
    fn spec()(
        names in (name(), option::of(name()), prop::sample::select(vec!["debian:", "debian:nginx-light,php-fpm"])),
        command in ("[a-z]{1,5}", prop::collection::vec(text(), 0..4)),
        place in ("/[^\u{0}/.]{0,6}", "[a-z0-9_-]{1,5}(:[0-9]{1,4})?"),
        env in btree_map("[^=\u{0}]{1,6}", text(), 0..3),
        files in btree_map("/[^\u{0}/.]{1,6}", prop_oneof![text(), any::<String>()], 0..3),
        routes in btree_map(route(), target(), 0..4),
        ignore in ignore(),
        rules in (neighbours(), neighbours()),
        limits in limits(),
        blocks in 1u32..=64,
        idle in prop_oneof![
            Just(Idle::Never),
            (100u64..31_622_400_000, any::<bool>(), option::of(100u64..1 << 30)).prop_map(|(after_ms, freeze, quiet_ms)| Idle::After {
                after_ms, then: if freeze { IdleAction::Freeze } else { IdleAction::Stop }, quiet_ms,
            }),
        ],
        restart in prop_oneof![Just(Restart::OnFailure), Just(Restart::Always), Just(Restart::Never)],
        ready in prop_oneof![option::of(1u16..).prop_map(ReadySpec::Listen), Just(ReadySpec::Notify)],
        ready_check in option::of((prop::collection::vec("[a-z'\" ]{1,5}", 1..3), 10u64..=60_000, 100u64..9_000_000)
            .prop_map(|(command, interval_ms, timeout_ms)| ReadyCheck { command, interval_ms, timeout_ms })),
        start_deadline_ms in 100u64..31_622_400_000,
        stop in (0..SIGNALS.len(), 0u64..31_622_400_000).prop_map(|(i, grace_ms)| Stop { signal: SIGNALS[i].1, grace_ms }),
        volumes in btree_map("[a-z]{1,9}", option::of(1u64..1 << 20), 0..4),
        secrets in btree_map("[a-z]{1,9}", Just(()), 0..4),
        directories in btree_map("[a-z]{1,9}", (any::<bool>(), option::of((0u32..65_536, 0u32..65_536))), 0..4),
        jobs in btree_map(name(), job(), 0..3),
        busy in prop::collection::vec("[a-z]{1,5}", 0..3),
        wants in prop::collection::btree_set("[a-z]{1,5}", 0..3),
        labels in prop::collection::btree_set("[a-z]{1,5}", 0..3),
        egress in option::of(prop::collection::vec("[a-z]{1,5}\\.[a-z]{1,5}:[1-9]|\\*:[1-9]|192\\.0\\.2\\.0/24", 0..3)),
        logs in prop::collection::vec("(/x[a-z?. 'ü]{0,4}\\*?[a-z]){1,3}", 0..3),
        flags in any::<(bool, bool)>(),
    ) -> VpsSpec {
        // Which route is the first is only known to the parser: with several ports it says the one it means.
        let (mut routes, mut ignore) = (routes, ignore);
        // What names clients of routes that are not there is refused.
        if !routes.keys().any(|route| matches!(route, Route::Http { .. })) {
            ignore.user_agent.clear();
        }
        if routes.is_empty() {
            ignore.from.clear();
        }
        for (_, target) in routes.iter_mut().filter(|(route, _)| !matches!(route, Route::Address(_))) {
            target.client = ClientAddress::default();
        }
        let first = routes.values().next().map(|target| target.port);
        let several = routes.values().any(|target| Some(target.port) != first);
        let ready = if ready == ReadySpec::Listen(None) && several { ReadySpec::Notify } else { ready };
        VpsSpec {
            tenant: names.0.parse().expect("a name"),
            image: names.2.parse().expect("an image"),
            command: std::iter::once(command.0).chain(command.1).collect(),
            cwd: place.0,
            user: place.1,
            hostname: names.1.map(|name| name.parse().expect("a name")),
            volumes: volumes.into_iter().enumerate().map(|(n, (name, size))| {
                let volume = Volume { path: format!("/srv/{n}"), size: size.map(|mib| mib << 20) };
                (name.parse().expect("a name"), volume)
            }).collect(),
            egress: egress.map(|all| all.iter().map(|one| one.parse().expect("one")).collect()),
            labels: labels.into_iter().map(|label| label.parse().expect("a name")).collect(),
            wants: wants.into_iter().map(|name| name.parse().expect("a name")).collect(),
            admits: rules.0,
            reaches: rules.1,
            directories: directories.into_iter().enumerate().map(|(n, (name, (write, owner)))| {
                let directory = Directory { path: format!("/mnt/{n}"), write, owner: owner.unwrap_or_default() };
                (name.parse().expect("a name"), directory)
            }).collect(),
            secrets: secrets.into_keys().enumerate().map(|(n, name)| {
                (name.parse().expect("a name"), format!("/run/secrets/{n}"))
            }).collect(),
            busy: if idle == Idle::Never { Vec::new() } else { busy },
            jobs: jobs.into_iter().map(|(name, job)| (name.parse().expect("a name"), job)).collect(),
            env, files, logs, routes, ignore, limits, idle, restart, ready, ready_check, start_deadline_ms, stop,
            ids: blocks * 65_536,
            setuid: flags.0,
            nesting: flags.1,
        }
    }
}

proptest! {
    #[test]
    fn what_is_rendered_is_parsed_back(spec in spec()) {
        let name: VpsName = "blog".parse().expect("a name");
        let text = render(&name, &spec);
        let parsed = parse("s.toml", &text);
        let parsed = parsed.map_err(|p| TestCaseError::fail(format!("{text}\n{}", p[0])))?;
        prop_assert_eq!(&parsed.vps[&name], &spec, "{}", text);
    }

    #[test]
    fn no_file_makes_the_parser_panic(text in "([a-z\\[\\]{}=\".,\n ]|tenant|\\[vps\\.a\\]|image|limits|ä|😀){0,60}") {
        if let Err(problems) = parse("s.toml", &text) {
            prop_assert!(!problems.is_empty());
            problems.iter().for_each(|problem| drop(problem.to_string()));
        }
    }
}

#[test]
fn jobs_have_names_and_one_time_each() {
    let text = |jobs: &str| format!("tenant = \"a\"\n[vps.blog]\nimage = \"debian:\"\ncommand = [\"x\"]\n{jobs}");
    let one = |more: &str| format!("[[vps.blog.job]]\n{more}\n");
    let run = "run = [\"/usr/bin/Tidy.sh\"]";
    let good = text(&(one(&format!("every = \"15m\"\n{run}")) + &one(&format!("at = \"03:30\"\n{run}"))));
    let spec = &parse("s.toml", &good).expect("good").vps["blog"];
    let names: Vec<_> = spec.jobs.keys().map(JobName::as_str).collect();
    assert_eq!(names, ["tidy-sh", "tidy-sh-2"]);
    assert!(matches!(spec.idle, Idle::After { .. }), "a job wakes it, so it may sleep");
    for (jobs, says) in [
        (one(run), "a job must say when it runs"),
        (one(&format!("every = \"1h\"\nat = \"03:30\"\n{run}")), "a job says only once when it runs"),
        (one(&format!("at = \"3:30\"\n{run}")), "is no time of day"),
        (one(&format!("every = \"10ms\"\n{run}")), "is too short"),
        (one("every = \"1h\"\nrun = []"), "`run` names no program"),
        (one("every = \"1h\""), "`run` is missing"),
        (one(&format!("name = \"a\"\nevery = \"1h\"\n{run}")).repeat(2), "another job is called `a` already"),
        ("idle = { after = \"1m\", busy = [] }".to_owned(), "`busy` names no program"),
    ] {
        let problems = parse("s.toml", &text(&jobs)).expect_err(says);
        assert!(problems[0].message.contains(says), "{}", problems[0]);
    }
}

#[test]
fn a_rendered_spec_is_short() {
    let blog = &parse("blog.toml", BLOG).expect("a good spec").vps["blog"];
    assert_eq!(blog.limits.memory, parse_bytes("512MiB").ok());
    let expected = r#"tenant = "acme"

[vps.blog]
image = "debian:nginx-light"
command = ["nginx", "-g", "daemon off;"]
routes = { "http://blog.example.org:8080" = 80 }
limits = { memory = "512MiB", cpu = 1.5, processes = 200 }
idle = { after = "3s", then = "freeze" }

[vps.blog.files]
"/etc/nginx/conf.d/a.conf" = '''
server { listen 80; }
'''
"#;
    assert_eq!(render(&"blog".parse().expect("a name"), blog), expected);
}

const PAIR: &str = r#"tenant = "acme"
allow = ["web->db:5432", "tool -> db:5432", "web -> far:1"]

[vps.web]
image = "debian:"
command = ["true"]

[vps.db]
image = "debian:"
command = ["true"]
"#;

#[test]
fn a_rule_belongs_to_whom_it_leads_to_else_to_who_is_in_the_file() {
    let spec = parse("s.toml", PAIR).expect("a good spec");
    let name = |text: &str| text.parse::<VpsName>().expect("a name");
    let shown = |of: &str| spec.vps[of].allow(&name(of)).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(shown("db"), ["tool -> db:5432", "web -> db:5432"]);
    assert_eq!(shown("web"), ["web -> far:1"]);
    assert_eq!(spec.vps["db"].idle, Idle::default_for(true), "a neighbour wakes it, so it may sleep");
    assert_eq!(spec.vps["web"].idle, Idle::Never);
    assert!(
        render(&name("db"), &spec.vps["db"])
            .starts_with("tenant = \"acme\"\nallow = [\"tool -> db:5432\", \"web -> db:5432\"]\n\n[vps.db]\n")
    );
}

#[test]
fn a_rule_by_label_belongs_to_whom_it_leads_to_and_to_who_has_it() {
    let text = PAIR.replace(
        "\"web->db:5432\", \"tool -> db:5432\", \"web -> far:1\"",
        "\"@front -> @store:1\", \"@front -> db:2\"",
    );
    let with = |label: &str, of: &str, text: &str| {
        text.replace(&format!("[vps.{of}]\n"), &format!("[vps.{of}]\nlabels = [{label:?}]\n"))
    };
    let spec = parse("s.toml", &with("store", "db", &with("front", "web", &text))).expect("a good spec");
    let name = |text: &str| text.parse::<VpsName>().expect("a name");
    let shown = |of: &str| spec.vps[of].allow(&name(of)).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(shown("db"), ["@front -> db:1", "@front -> db:2"]);
    assert_eq!(shown("web"), ["web -> @store:1"], "those of other files");
    let told = problems(&text);
    assert!(told.contains("neither `@front` nor `@store` is a vps of this file"), "{told}");
}

#[test]
fn wrong_rules_are_told_with_their_places() {
    let told = problems(&PAIR.replace("\"web -> far:1\"", "\"far -> near:1\", \"web -> web:1\", \"db:1\""));
    assert!(told.contains("s.toml:2:45  neither `far` nor `near` is a vps of this file"), "{told}");
    assert!(told.contains("s.toml:2:62  `web` reaches itself without a rule"), "{told}");
    assert!(told.contains("s.toml:2:78  `db:1` is not a rule such as \"blog -> db:3306\""), "{told}");
    let told = in_vps("allow = [\"web -> blog:1\"]");
    assert!(told.contains("write it at the top of the file"), "{told}");
}

#[test]
fn secrets_have_files_of_their_own() {
    let told = in_vps(
        "secrets = { a = \"/proc/a\", b = \"/run/b/\", c = \"/run/c\", d = \"/run/c\", e = \"/etc/e\", f = \"/srv\" }\nfiles = { \"/etc/e\" = \"x\" }\nvolumes = { v = \"/srv\" }",
    );
    for message in [
        "secret `a` cannot be below /proc",
        "`/run/b/` is a directory: name the file of secret `b`",
        "secret `c` is at /run/c already",
        "`files` has /etc/e too",
        "a volume is at /srv already",
    ] {
        assert!(told.contains(message), "{message} in {told}");
    }
    let told =
        problems("tenant = \"a\"\nsecrets = { a = \"/run/a\" }\n[vps.b]\nimage = \"debian:\"\ncommand = [\"true\"]\n");
    assert!(told.contains("unknown field `secrets`") && told.contains("[vps.NAME]"), "{told}");
}

#[test]
fn directories_of_the_host_have_places_of_their_own() {
    let told = in_vps(
        "volumes = { v = \"/srv/v\" }\nsecrets = { s = \"/etc/s\" }\ndirectories = { a = \"/\", b = \"/run/b\", c = \"/c\", d = \"/c/\", e = \"/srv/v\", f = \"/etc/s\", g = { path = \"/g\", owner = \"70000\" }, h = { path = \"/h\", owner = \"www-data\" } }",
    );
    for message in [
        "directory `a` cannot be the whole root",
        "directory `b` cannot be below /run",
        "directory `c` is at /c already",
        "a volume is at /srv/v already",
        "a secret is at /etc/s already",
        "`owner` of directory `g` is none of its ids, 0 to 65535",
        "`www-data` is not a user's and a group's id",
    ] {
        assert!(told.contains(message), "{message} in {told}");
    }
}

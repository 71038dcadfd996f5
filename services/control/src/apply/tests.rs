use super::*;
use crate::fixtures::spec;

#[derive(Default)]
struct House {
    specs: BTreeMap<VpsName, Arc<VpsSpec>>,
    up: BTreeMap<VpsName, u64>,
    secrets: BTreeMap<SecretId, u64>,
    deleting: BTreeSet<VpsName>,
    directories: BTreeMap<DirectoryName, AllowedDirectory>,
    egress: Option<Vec<model::Egress>>,
    unshown: DirectoryFaults,
}

fn name(text: &str) -> VpsName {
    text.parse().unwrap()
}

impl House {
    fn with(vps: &[(&str, VpsSpec)]) -> Self {
        let specs = vps.iter().map(|(n, spec)| (name(n), Arc::new(spec.clone()))).collect();
        Self { specs, ..Self::default() }
    }

    fn plan(&self, request: &ApplyRequest) -> Result<Plan, Refusal> {
        let designated = BTreeSet::from([name("gateway")]);
        let machine = Machine { memory: 1 << 30, cpus: 2 };
        let (specs, up, secrets, deleting) = (&self.specs, &self.up, &self.secrets, &self.deleting);
        let mut host = model::host::default_config();
        host.directories = self.directories.clone();
        host.network.egress = self.egress.clone();
        let (designated, host, unshown) = (&designated, &host, &self.unshown);
        plan(&World { specs, designated, deleting, up, secrets, host, unshown, machine }, request)
    }
}

fn file(name: &str, tenant: &str, vps: &str) -> SpecFile {
    SpecFile { name: name.to_owned(), text: format!("tenant = \"{tenant}\"\n{vps}"), ..Default::default() }
}

fn vps(name: &str, more: &str) -> String {
    format!("\n[vps.{name}]\nimage = \"debian:nginx-light\"\ncommand = [\"nginx\"]\n{more}\n")
}

fn request(files: Vec<SpecFile>) -> ApplyRequest {
    ApplyRequest { files, dry_run: false, take_routes: false }
}

fn refused(plan: Result<Plan, Refusal>) -> (ErrorKind, Vec<String>) {
    let refusal = plan.expect_err("was not refused");
    let show = |p: Problem| format!("{}:{}:{} {}", p.file, p.line, p.column, p.message);
    (refusal.kind, refusal.problems.into_iter().map(show).collect())
}

/// Specs as they are once they are stored.
#[test]
fn a_second_apply_changes_nothing() {
    let site = request(vec![file("a.toml", "acme", &vps("a", "routes = { \"http://a.example\" = 80 }"))]);
    let first = House::with(&[]).plan(&site).unwrap();
    assert_eq!(first.changes[0].kind, ChangeKind::Create);
    assert_eq!((first.specs.len(), first.listen.len(), first.images.len()), (1, 1, 1));
    let house = House { specs: first.specs, ..House::with(&[]) };
    let second = house.plan(&site).unwrap();
    assert_eq!(second.changes[0].kind, ChangeKind::None);
    assert!(second.specs.is_empty() && second.listen.is_empty() && second.changes[0].fields.is_empty());
}

#[test]
fn a_running_vps_keeps_its_spec_but_not_its_routes() {
    let before = request(vec![file("a.toml", "acme", &vps("a", ""))]);
    let mut house = House::with(&[]);
    house.specs = house.plan(&before).unwrap().specs;
    house.up.insert(name("a"), 5);
    let routed =
        request(vec![file("a.toml", "acme", &vps("a", "routes = { \"http://a.example\" = 80 }\nidle = \"never\""))]);
    assert!(!house.plan(&routed).unwrap().changes[0].at_next_start);
    let limited = request(vec![file("a.toml", "acme", &vps("a", "limits = { memory = \"64MiB\" }"))]);
    let change = &house.plan(&limited).unwrap().changes[0];
    assert!(change.at_next_start);
    assert_eq!(change.fields[0].field, "limits.memory");
}

#[test]
fn all_problems_are_said_at_once_each_at_its_place() {
    let house = House::with(&[("old", spec("acme", &[("http://a.example", 80)]))]);
    let files = vec![
        file("a.toml", "acme", &vps("a", "routes = { \"http://A.example\" = 80 }\nlimits = { memory = \"2GiB\" }")),
        file("b.toml", "acme", &(vps("a", "") + &vps("gateway", ""))),
        file("c.toml", "acme", "\n[vps.c]\nimag = \"debian:nginx-light\"\n"),
    ];
    let (kind, problems) = refused(house.plan(&request(files)));
    assert_eq!(kind, ErrorKind::Invalid);
    let has = |text: &str| assert!(problems.iter().any(|p| p.starts_with(text)), "{text} is not in {problems:#?}");
    has("a.toml:6:13 route http://a.example belongs to vps \"old\"");
    has("a.toml:7:12 limits.memory is 2.0 GiB, and this machine has 1.0 GiB");
    has("b.toml:3:1 vps \"a\" is also in a.toml");
    has("b.toml:8:1 gateway is the name of a designated VPS");
    has("c.toml:4:1");
}

#[test]
fn kinds_decide_the_exit_status() {
    let taken = House::with(&[("old", spec("acme", &[("http://a.example", 80)]))]);
    let route = request(vec![file("a.toml", "acme", &vps("a", "routes = { \"http://a.example\" = 80 }"))]);
    assert_eq!(refused(taken.plan(&route)).0, ErrorKind::Conflict);
    let large = request(vec![file("a.toml", "acme", &vps("a", "limits = { cpu = 3.0 }"))]);
    assert_eq!(refused(taken.plan(&large)).0, ErrorKind::Lacking);
}

#[test]
fn routes_can_be_taken() {
    let house = House::with(&[("old", spec("acme", &[("http://a.example", 80), ("http://b.example", 80)]))]);
    let mut take = request(vec![file("a.toml", "acme", &vps("a", "routes = { \"http://a.example\" = 80 }"))]);
    take.take_routes = true;
    let plan = house.plan(&take).unwrap();
    assert_eq!(plan.specs[&name("old")].routes.len(), 1);
    assert_eq!(plan.specs[&name("a")].routes.len(), 1);
    assert!(plan.listen.is_empty(), "the port is listened on already");
    let kinds: Vec<_> = plan.changes.iter().map(|change| (change.vps.as_str(), change.kind)).collect();
    assert_eq!(kinds, [("a", ChangeKind::Create), ("old", ChangeKind::Change)]);
}

#[test]
fn one_address_is_http_or_one_servers() {
    let house = House::with(&[("web", spec("acme", &[("http://a.example:90", 80)]))]);
    let raw = request(vec![file("a.toml", "acme", &vps("a", "routes = { \"tcp://*:90\" = 80 }"))]);
    let (kind, problems) = refused(house.plan(&raw));
    assert_eq!(kind, ErrorKind::Conflict);
    assert!(problems[0].starts_with("a.toml:6:13 route tcp://*:90 needs [::]:90 for itself"), "{problems:?}");
    let beside = request(vec![file("a.toml", "acme", &vps("a", "routes = { \"http://b.example:90\" = 80 }"))]);
    assert!(house.plan(&beside).is_ok());
}

#[test]
fn a_name_belongs_to_its_tenant_and_its_ids_to_the_vps() {
    let house = House::with(&[("a", spec("beta", &[]))]);
    let (kind, problems) = refused(house.plan(&request(vec![file("a.toml", "acme", &vps("a", ""))])));
    assert_eq!((kind, problems.len()), (ErrorKind::Conflict, 1));
    assert!(!problems[0].contains("beta"), "a foreign name was told: {problems:?}");
    let more = request(vec![file("a.toml", "beta", &vps("a", "ids = 131072"))]);
    assert_eq!(refused(house.plan(&more)).0, ErrorKind::Conflict);
}

#[test]
fn a_name_is_not_free_while_its_deletion_goes_on() {
    let mut house = House::with(&[]);
    house.deleting.insert(name("a"));
    let (kind, _) = refused(house.plan(&request(vec![file("a.toml", "acme", &vps("a", ""))])));
    assert_eq!(kind, ErrorKind::Conflict);
}

#[test]
fn a_port_in_use_is_shown_at_its_route() {
    let site = request(vec![file("a.toml", "acme", &vps("a", "routes = { \"http://a.example:8080\" = 80 }"))]);
    let plan = House::with(&[]).plan(&site).unwrap();
    let address = *plan.listen.first().unwrap();
    let problems = listen_problems(&site, &plan, &[(address, "address in use".to_owned())]);
    assert_eq!((problems[0].line, problems[0].column), (6, 13));
    assert_eq!(problems[0].message, "[::]:8080 can't be listened on: address in use");
}

#[test]
fn rules_are_about_vpss_of_their_tenant() {
    let text = format!("allow = [\"web -> db:1\", \"tool -> db:1\", \"other -> db:1\"]\n{}", vps("db", ""));
    let site = request(vec![file("db.toml", "acme", &text), file("web.toml", "acme", &vps("web", ""))]);
    let house = House::with(&[("tool", spec("acme", &[])), ("other", spec("beta", &[]))]);
    let (kind, told) = refused(house.plan(&site));
    assert_eq!((kind, told), (ErrorKind::Invalid, vec!["db.toml:2:42 tenant acme has no vps \"other\"".to_owned()]));
    let site = request(vec![
        file("db.toml", "acme", &text.replace(", \"other -> db:1\"", "")),
        file("web.toml", "acme", &vps("web", "")),
    ]);
    let plan = house.plan(&site).unwrap();
    let change = plan.changes.iter().find(|change| change.vps == name("db")).unwrap();
    let allow = change.fields.iter().find(|field| field.field == "allow").unwrap();
    assert_eq!(allow.new.as_deref(), Some("[\"tool -> db:1\", \"web -> db:1\"]"));
}

#[test]
fn a_secret_that_is_not_set_is_refused_where_it_is_named() {
    let site = request(vec![file("a.toml", "acme", &vps("a", "secrets = { db = \"/run/db\", key = \"/run/key\" }"))]);
    let id = |tenant: &str, secret: &str| SecretId { tenant: tenant.parse().unwrap(), name: secret.parse().unwrap() };
    let mut house = House::with(&[]);
    house.secrets = BTreeMap::from([(id("acme", "db"), 7), (id("beta", "key"), 7)]);
    let (kind, told) = refused(house.plan(&site));
    assert_eq!((kind, told), (ErrorKind::NotFound, vec!["a.toml:6:29 secret `acme/key` is not set".to_owned()]));
    house.secrets.insert(id("acme", "key"), 9);
    let first = house.plan(&site).unwrap();
    assert!(first.changes[0].secrets.is_empty());
    // One that was set since the VPS was started is told of, though nothing else changes.
    house.specs = first.specs;
    house.up.insert(name("a"), 8);
    let second = house.plan(&site).unwrap();
    assert_eq!((second.changes[0].kind, second.changes[0].secrets[0].as_str()), (ChangeKind::None, "key"));
    assert_eq!(second.changes[0].secrets.len(), 1);
}

#[test]
fn a_directory_of_the_host_is_refused_with_what_host_toml_would_have_to_say() {
    let text = "[directory.photos]\npath = \"/srv/photos\"\ntenants = [\"acme\"]\n[directory.gone]\npath = \"/gone\"\ntenants = [\"*\"]\nwrite = true\n";
    let config = model::host::parse("host.toml", text).unwrap();
    let mut house = House { directories: config.directories, ..House::default() };
    house.unshown.written.insert("gone".parse().unwrap(), "it belongs to root; give it away".to_owned());
    let with = |tenant: &str, lines: &str| request(vec![file("a.toml", tenant, &vps("a", lines))]);
    assert!(house.plan(&with("acme", "directories = { photos = \"/photos\", gone = \"/gone\" }")).is_ok());
    let asked = "directories = { photos = { path = \"/p\", write = true }, gone = { path = \"/g\", write = true }, no = \"/no\" }";
    let (_, told) = refused(house.plan(&with("acme", asked)));
    let expected = [
        "a.toml:6:17 VPSs may only read the host's directory `photos`",
        "a.toml:6:57 it belongs to root",
        "a.toml:6:95 this host shows VPSs no directory `no`",
    ];
    assert_eq!(told, expected);
    let (kind, told) = refused(house.plan(&with("beta", "directories = { photos = \"/photos\" }")));
    assert_eq!(kind, ErrorKind::Denied);
    assert_eq!(told, ["a.toml:6:17 tenant beta may not see the host's directory `photos`"]);
}

#[test]
fn a_tenant_may_not_connect_to_more_than_host_toml_says() {
    let mut house = House { egress: Some(vec!["*.example.org:443".parse().unwrap()]), ..House::default() };
    let spec = |egress: &str| {
        file("f.toml", "acme", &format!("[vps.a]\nimage = \"debian:\"\ncommand = [\"x\"]\negress = [{egress}]\n"))
    };
    assert!(house.plan(&request(vec![spec("\"a.example.org:443\"")])).is_ok());
    let refused = house.plan(&request(vec![spec("\"a.example.org:443\", \"example.com:443\"")])).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Denied);
    let problem = &refused.problems[0];
    assert_eq!(problem.message, "tenant acme may not connect to example.com:443");
    assert_eq!(problem.hint.as_deref(), Some("it may: *.example.org:443"));
    assert!(problem.line > 0 && problem.column > 10, "{problem:?}");
    house.egress = None;
    assert!(house.plan(&request(vec![spec("\"example.com:443\"")])).is_ok());
}

#[test]
fn a_label_that_nobody_has_and_rules_without_number_are_refused() {
    let house = House::default();
    let labelled = |n: usize| format!("\n[vps.v{n}]\nimage = \"debian:\"\ncommand = [\"x\"]\nlabels = [\"all\"]\n");
    let file = |rule: &str, number| {
        let text: String = (0..number).map(labelled).collect();
        file("f.toml", "acme", &format!("allow = [{rule:?}]\n{text}"))
    };
    assert!(house.plan(&request(vec![file("@all -> v0:80", 3)])).is_ok());
    let refused = house.plan(&request(vec![file("@al -> v0:80", 3)])).unwrap_err();
    assert_eq!(refused.problems[0].message, "tenant acme has no vps with the label \"al\"");
    assert_eq!(refused.problems[0].hint.as_deref(), Some("did you mean `@all`?"));
    let refused = house.plan(&request(vec![file("@all -> @all:80", 200)])).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Lacking);
    assert!(refused.problems[0].message.contains("at most 20000"), "{}", refused.problems[0].message);
}

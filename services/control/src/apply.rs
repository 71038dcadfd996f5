//! Spec files against what is stored: what would change, or everything that is wrong. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use model::{
    DirectoryName, Egress, ImageRef, ListenAddress, Party, Route, SecretName, VpsName, VpsSpec,
    api::{ApplyRequest, Change, ChangeKind, ErrorKind, SpecFile},
    host::{AllowedDirectory, HostConfig},
    spec::Problem,
};
use wire::host::DirectoryFaults;

use crate::{
    diff,
    locate::{Target, problem},
    machine::Machine,
    neighbours,
    secrets::{self, SecretId},
};

/// Rules between VPSs of one tenant at most: a pair and a port each.
const RULES: usize = 20_000;

/// What a request is held against.
#[derive(Debug)]
pub struct World<'a> {
    /// The stored specs.
    pub specs: &'a BTreeMap<VpsName, Arc<VpsSpec>>,
    /// Names of designated VPSs.
    pub designated: &'a BTreeSet<VpsName>,
    /// Names of VPSs whose deletion is not finished.
    pub deleting: &'a BTreeSet<VpsName>,
    /// VPSs with processes, and since when.
    pub up: &'a BTreeMap<VpsName, u64>,
    /// Secrets that are set, and when they were.
    pub secrets: &'a BTreeMap<SecretId, u64>,
    /// What host.toml leaves VPSs: directories of the host's, and what of the outside.
    pub host: &'a HostConfig,
    /// Which of the directories the host can't show.
    pub unshown: &'a DirectoryFaults,
    /// What the machine has.
    pub machine: Machine,
}

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// One per VPS, those without a difference too.
    pub changes: Vec<Change>,
    /// The new specs of VPSs that change.
    pub specs: BTreeMap<VpsName, Arc<VpsSpec>>,
    /// The images of the VPSs that were sent.
    pub images: BTreeSet<ImageRef>,
    /// Addresses that are not listened on yet.
    pub listen: BTreeSet<ListenAddress>,
}

/// Why nothing is done.
#[derive(Debug)]
pub struct Refusal {
    /// The gravest kind.
    pub kind: ErrorKind,
    /// All that is wrong.
    pub problems: Vec<Problem>,
}

/// A VPS that was sent, and the file it was in.
struct Sent<'a> {
    file: &'a SpecFile,
    spec: VpsSpec,
}

struct Check<'a> {
    found: Vec<(ErrorKind, Problem)>,
    sent: BTreeMap<VpsName, Sent<'a>>,
}

/// Plans what `request` asks for.
pub fn plan(world: &World<'_>, request: &ApplyRequest) -> Result<Plan, Refusal> {
    let mut check = Check { found: Vec::new(), sent: BTreeMap::new() };
    check.read(&request.files);
    check.names(world);
    check.limits(world);
    check.neighbours(world);
    check.number_of_rules(world);
    check.secrets(world);
    check.directories(world);
    check.egress(world);
    let taken = check.routes(world, request.take_routes);
    check.listeners(world, &taken);
    let Check { found, sent } = check;
    if !found.is_empty() {
        return Err(refusal(found));
    }
    Ok(changes(world, sent, taken))
}

fn refusal(mut found: Vec<(ErrorKind, Problem)>) -> Refusal {
    found.sort_by(|(_, a), (_, b)| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    let weight = |kind: ErrorKind| match kind {
        ErrorKind::Invalid => 0,
        ErrorKind::Conflict => 1,
        _ => 2,
    };
    let kind = found.iter().map(|(kind, _)| *kind).min_by_key(|kind| weight(*kind)).unwrap_or(ErrorKind::Invalid);
    Refusal { kind, problems: found.into_iter().map(|(_, problem)| problem).collect() }
}

impl<'a> Check<'a> {
    fn read(&mut self, files: &'a [SpecFile]) {
        for file in files {
            let spec = match model::spec::parse_with(file) {
                Ok(spec) => spec,
                Err(problems) => {
                    self.found.extend(problems.into_iter().map(|problem| (ErrorKind::Invalid, problem)));
                    continue;
                }
            };
            for (name, spec) in spec.vps {
                if let Some(other) = self.sent.get(&name) {
                    let message = format!("vps \"{name}\" is also in {}", other.file.name);
                    self.found.push((ErrorKind::Invalid, header(file, &name, message, "keep one of the two")));
                } else {
                    self.sent.insert(name, Sent { file, spec });
                }
            }
        }
    }

    fn add(&mut self, kind: ErrorKind, vps: &VpsName, target: Target<'_>, message: String, hint: String) {
        if let Some(sent) = self.sent.get(vps) {
            let problem = problem(&sent.file.name, &sent.file.text, vps, target, message, Some(hint));
            self.found.push((kind, problem));
        }
    }

    fn names(&mut self, world: &World<'_>) {
        let mut found = Vec::new();
        for (name, sent) in &self.sent {
            if world.designated.contains(name) {
                let message = format!("{name} is the name of a designated VPS");
                found.push((ErrorKind::Conflict, name.clone(), message, "choose another name".to_owned()));
            } else if world.deleting.contains(name) {
                let message = format!("vps \"{name}\" is being deleted");
                found.push((ErrorKind::Conflict, name.clone(), message, "apply again in a moment".to_owned()));
            }
            let Some(stored) = world.specs.get(name) else { continue };
            if stored.tenant != sent.spec.tenant {
                let message = format!("another tenant has a vps \"{name}\"");
                found.push((ErrorKind::Conflict, name.clone(), message, "choose another name".to_owned()));
            } else if stored.ids != sent.spec.ids {
                let message = format!("vps \"{name}\" has {} ids, and keeps them as long as it exists", stored.ids);
                let hint = format!("write ids = {}, or bailiwick delete {name} first", stored.ids);
                found.push((ErrorKind::Conflict, name.clone(), message, hint));
            }
        }
        for (kind, name, message, hint) in found {
            self.add(kind, &name, Target::Header, message, hint);
        }
    }

    fn limits(&mut self, world: &World<'_>) {
        let over = |(name, sent): (&VpsName, &Sent<'_>)| {
            let name = name.clone();
            world.machine.exceeded(&sent.spec.limits).into_iter().map(move |found| (name.clone(), found))
        };
        let found: Vec<_> = self.sent.iter().flat_map(over).collect();
        for (name, (field, message)) in found {
            self.add(ErrorKind::Lacking, &name, Target::Word(field), message, "write a smaller limit".to_owned());
        }
    }

    /// Rules are about VPSs that their tenant has. What another tenant has looks like nothing.
    fn neighbours(&mut self, world: &World<'_>) {
        let mut found = Vec::new();
        for (name, sent) in &self.sent {
            let stored = world.specs.iter().filter(|(other, _)| !self.sent.contains_key(*other));
            let all = stored
                .map(|(other, spec)| (other, &**spec))
                .chain(self.sent.iter().map(|(other, sent)| (other, &sent.spec)));
            let VpsSpec { tenant, admits, reaches, wants, .. } = &sent.spec;
            if admits.is_empty() && reaches.is_empty() && wants.is_empty() {
                continue;
            }
            let (mut tenants, mut labels) = (BTreeSet::new(), BTreeSet::new());
            for (other, spec) in all.filter(|(_, spec)| spec.tenant == *tenant) {
                tenants.insert(other);
                labels.extend(&spec.labels);
            }
            let unknown = |other: &VpsName| {
                if tenants.contains(other) {
                    return None;
                }
                let near = model::nearest(other.as_str(), tenants.iter().map(|name| name.as_str()));
                let hint = near.map_or("apply its file too".to_owned(), |near| format!("did you mean `{near}`?"));
                Some((format!("tenant {tenant} has no vps \"{other}\""), hint))
            };
            let own = Party::Vps(name.clone());
            for rule in sent.spec.allow(name) {
                let what = match if rule.from == own { &rule.to } else { &rule.from } {
                    Party::Vps(other) => unknown(other),
                    Party::Label(label) if labels.contains(label) => None,
                    Party::Label(label) => {
                        let near = model::nearest(label.as_str(), labels.iter().map(|label| label.as_str()));
                        let hint = near.map_or("write labels = [...] in [vps.NAME]".to_owned(), |near| {
                            format!("did you mean `@{near}`?")
                        });
                        Some((format!("tenant {tenant} has no vps with the label \"{label}\""), hint))
                    }
                };
                found.extend(what.map(|what| (name.clone(), name.clone(), Some(rule.clone()), what)));
            }
            found.extend(wants.iter().filter_map(|other| Some((name.clone(), other.clone(), None, unknown(other)?))));
        }
        for (name, other, rule, (message, hint)) in found {
            let target = rule.as_ref().map_or(Target::Entry("wants", other.as_str()), Target::Rule);
            self.add(ErrorKind::Invalid, &name, target, message, hint);
        }
    }

    /// Labels can make very many rules.
    fn number_of_rules(&mut self, world: &World<'_>) {
        let has_labels = |spec: &VpsSpec| {
            let mut parties = spec.admits.keys().chain(spec.reaches.keys());
            !spec.labels.is_empty() || parties.any(|party| matches!(party, Party::Label(_)))
        };
        if !self.sent.values().any(|sent| has_labels(&sent.spec)) {
            return;
        }
        let mut specs = world.specs.clone();
        specs.extend(self.sent.iter().map(|(name, sent)| (name.clone(), Arc::new(sent.spec.clone()))));
        let tenants: BTreeSet<_> = self.sent.values().map(|sent| &sent.spec.tenant).collect();
        let counted = tenants.into_iter().map(|tenant| (tenant.clone(), neighbours::count(&specs, tenant)));
        let found: Vec<_> = counted.filter(|(_, number)| *number > RULES).collect();
        for (tenant, number) in found {
            let of = |(name, sent): (&VpsName, &Sent<'_>)| (sent.spec.tenant == tenant).then(|| name.clone());
            let Some(name) = self.sent.iter().find_map(of) else { continue };
            let what = format!(
                "the rules of tenant {tenant} would be up to {number}, one a pair of VPSs and port; at most {RULES} are taken"
            );
            let hint = "give labels to fewer VPSs, or write rules for fewer of them".to_owned();
            self.add(ErrorKind::Lacking, &name, Target::Word("allow"), what, hint);
        }
    }

    /// A VPS could not start with a secret that nobody set.
    fn secrets(&mut self, world: &World<'_>) {
        let unset = |(name, sent): (&VpsName, &Sent<'_>)| {
            let ids: Vec<_> = secrets::ids(&sent.spec).filter(|id| !world.secrets.contains_key(id)).collect();
            let name = name.clone();
            ids.into_iter().map(move |id| (name.clone(), id))
        };
        let found: Vec<_> = self.sent.iter().flat_map(unset).collect();
        for (vps, id) in found {
            let target = Target::Entry("secrets", id.name.as_str());
            let hint = format!("bailiwick secret set {id}");
            self.add(ErrorKind::NotFound, &vps, target, format!("secret `{id}` is not set"), hint);
        }
    }

    /// What host.toml does not allow, or the host can't show. The host looks again at each start.
    fn directories(&mut self, world: &World<'_>) {
        let refused = |spec: &VpsSpec, name: &DirectoryName, write: bool| {
            let allowed = world.host.directories.get(name);
            let refusal = match allowed {
                None => Some(AllowedDirectory::unknown(name)),
                Some(allowed) => allowed.refuses(name, &spec.tenant, write),
            };
            let unshown = || world.unshown.seen.get(name).or_else(|| world.unshown.written.get(name).filter(|_| write));
            let split = |fault: &String| {
                let (what, next) = fault.split_once("; ").unwrap_or((fault, "see host.toml"));
                (what.to_owned(), next.to_owned())
            };
            refusal
                .map(|refusal| (ErrorKind::Denied, refusal))
                .or_else(|| Some((ErrorKind::NotFound, split(unshown()?))))
        };
        let mut found = Vec::new();
        for (vps, sent) in &self.sent {
            for (name, directory) in &sent.spec.directories {
                let refusal = refused(&sent.spec, name, directory.write);
                found.extend(refusal.map(|(kind, (what, next))| (kind, vps.clone(), name.clone(), what, next)));
            }
        }
        for (kind, vps, name, what, next) in found {
            self.add(kind, &vps, Target::Entry("directories", name.as_str()), what, next);
        }
    }

    /// A tenant chooses within what host.toml leaves it.
    fn egress(&mut self, world: &World<'_>) {
        let mut found = Vec::new();
        for (name, sent) in &self.sent {
            let Some(bound) = world.host.egress_of(&sent.spec.tenant) else { continue };
            let beyond = |one: &&Egress| !bound.iter().any(|bound| bound.covers(one));
            for one in sent.spec.egress.iter().flatten().filter(beyond) {
                let may: Vec<_> = bound.iter().take(8).map(ToString::to_string).collect();
                let hint = match may.is_empty() {
                    true => "leave it out: it may connect to nothing outside".to_owned(),
                    false => format!("it may: {}{}", may.join(", "), if bound.len() > 8 { ", …" } else { "" }),
                };
                let what = format!("tenant {} may not connect to {one}", sent.spec.tenant);
                found.push((name.clone(), one.to_string(), what, hint));
            }
        }
        for (name, one, what, hint) in found {
            self.add(ErrorKind::Denied, &name, Target::Entry("egress", &one), what, hint);
        }
    }

    /// Two VPSs may not claim one route. Answers the stored VPSs that lose routes, with what they lose.
    fn routes(&mut self, world: &World<'_>, take: bool) -> BTreeMap<VpsName, Vec<Route>> {
        let mut owners: BTreeMap<&Route, &VpsName> = BTreeMap::new();
        for (name, spec) in world.specs {
            if !self.sent.contains_key(name) {
                owners.extend(spec.routes.keys().map(|route| (route, name)));
            }
        }
        let mut claims: BTreeMap<&Route, &VpsName> = BTreeMap::new();
        let mut taken: BTreeMap<VpsName, Vec<Route>> = BTreeMap::new();
        let mut found = Vec::new();
        for (name, sent) in &self.sent {
            for route in sent.spec.routes.keys() {
                if let Some(other) = claims.insert(route, name) {
                    let message = format!("route {route} also belongs to vps \"{other}\" in what is applied");
                    found.push((name.clone(), route.clone(), message, "keep one of the two".to_owned()));
                } else if let Some(owner) = owners.get(route) {
                    if take {
                        taken.entry((*owner).clone()).or_default().push(route.clone());
                        continue;
                    }
                    let message = format!("route {route} belongs to vps \"{owner}\"");
                    let hint = format!(
                        "bailiwick delete {owner}, or apply --take-routes (moves it without refusing a request)"
                    );
                    found.push((name.clone(), route.clone(), message, hint));
                }
            }
        }
        for (name, route, message, hint) in found {
            self.add(ErrorKind::Conflict, &name, Target::Route(&route), message, hint);
        }
        taken
    }

    /// One address is either read as HTTP, or goes to one VPS as it is.
    fn listeners(&mut self, world: &World<'_>, taken: &BTreeMap<VpsName, Vec<Route>>) {
        let lost = |name: &VpsName, route: &Route| taken.get(name).is_some_and(|routes| routes.contains(route));
        let mut first: BTreeMap<ListenAddress, (&VpsName, &Route)> = BTreeMap::new();
        for (name, spec) in world.specs {
            if !self.sent.contains_key(name) {
                let kept = spec.routes.keys().filter(|route| !lost(name, route));
                first.extend(kept.map(|route| (route.listen(), (name, route))));
            }
        }
        let mut found = Vec::new();
        for (name, sent) in &self.sent {
            for route in sent.spec.routes.keys() {
                let (owner, other) = *first.entry(route.listen()).or_insert((name, route));
                if other != route && (is_by_address(other) || is_by_address(route)) {
                    let message =
                        format!("route {route} needs {} for itself, and vps \"{owner}\" has {other}", route.listen());
                    found.push((name.clone(), route.clone(), message));
                }
            }
        }
        for (name, route, message) in found {
            self.add(ErrorKind::Conflict, &name, Target::Route(&route), message, "choose another port".to_owned());
        }
    }
}

fn is_by_address(route: &Route) -> bool {
    matches!(route, Route::Address(_))
}

fn header(file: &SpecFile, vps: &VpsName, message: String, hint: &str) -> Problem {
    problem(&file.name, &file.text, vps, Target::Header, message, Some(hint.to_owned()))
}

/// The problems of addresses that can't be listened on, each where a route asks for it.
pub fn listen_problems(request: &ApplyRequest, plan: &Plan, faults: &[(ListenAddress, String)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (address, reason) in faults {
        let named = reason.contains(&address.to_string());
        let message = if named { reason.clone() } else { format!("{address} can't be listened on: {reason}") };
        let claims = plan.specs.iter().flat_map(|(name, spec)| spec.routes.keys().map(move |route| (name, route)));
        let claim = claims.into_iter().find(|(_, route)| route.listen() == *address);
        let Some((name, route)) = claim else { continue };
        let holds = |file: &&SpecFile| model::spec::parse_with(file).is_ok_and(|s| s.vps.contains_key(name));
        let Some(file) = request.files.iter().find(holds) else { continue };
        // What is said may name the next step already.
        let hint = (!reason.contains("; ")).then(|| "choose another port".to_owned());
        problems.push(problem(&file.name, &file.text, name, Target::Route(route), message, hint));
    }
    problems
}

fn changes(world: &World<'_>, sent: BTreeMap<VpsName, Sent<'_>>, taken: BTreeMap<VpsName, Vec<Route>>) -> Plan {
    let images = sent.values().map(|sent| sent.spec.image.clone()).collect();
    let mut wanted: BTreeMap<VpsName, VpsSpec> = sent.into_iter().map(|(name, sent)| (name, sent.spec)).collect();
    for (name, routes) in taken {
        if let Some(spec) = world.specs.get(&name) {
            let mut spec = VpsSpec::clone(spec);
            spec.routes.retain(|route, _| !routes.contains(route));
            // Of clients there is only something to say where routes are left.
            if spec.routes.keys().all(is_by_address) {
                spec.ignore.user_agent.clear();
            }
            if spec.routes.is_empty() {
                spec.ignore.from.clear();
            }
            wanted.insert(name, spec);
        }
    }
    let listened: BTreeSet<_> = world.specs.values().flat_map(|spec| spec.routes.keys().map(Route::listen)).collect();
    let needed = wanted.values().flat_map(|spec| spec.routes.keys().map(Route::listen));
    let listen = needed.filter(|address| !listened.contains(address)).collect();
    let mut changes = Vec::new();
    for (name, spec) in &wanted {
        let stored = world.specs.get(name).map(|stored| &**stored);
        let fields = diff::fields(name, stored, spec);
        let kind = match stored {
            None => ChangeKind::Create,
            Some(stored) if stored == spec => ChangeKind::None,
            Some(_) => ChangeKind::Change,
        };
        let changed = kind == ChangeKind::Change;
        let at_next_start = changed && world.up.contains_key(name) && fields.iter().any(diff::needs_start);
        let secrets = set_since(world, name, spec);
        changes.push(Change { vps: name.clone(), kind, fields, at_next_start, secrets });
    }
    wanted.retain(|name, spec| world.specs.get(name).is_none_or(|stored| **stored != *spec));
    let specs = wanted.into_iter().map(|(name, spec)| (name, Arc::new(spec))).collect();
    Plan { changes, specs, images, listen }
}

/// The secrets that were set since a VPS was started, which it does not have yet.
fn set_since(world: &World<'_>, name: &VpsName, spec: &VpsSpec) -> Vec<SecretName> {
    let Some(since) = world.up.get(name) else { return Vec::new() };
    let newer = |id: &SecretId| world.secrets.get(id).is_some_and(|set| set > since);
    secrets::ids(spec).filter(newer).map(|id| id.name).collect()
}

#[cfg(test)]
mod tests;

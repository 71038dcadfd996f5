//! Whether a capability holds what is asked.

use model::{Grant, ListenAddress, Selector, TenantName, Verb, VpsName, grant::VERBS};
use wire::Fault;

/// The grants of one capability.
#[derive(Debug, Clone)]
pub struct Grants(pub Vec<Grant>);

fn word(verb: Verb) -> &'static str {
    VERBS.iter().find(|(_, v)| *v == verb).map_or("", |(name, _)| name)
}

impl Grants {
    /// Whether `verb` on that VPS is granted.
    pub fn allows(&self, verb: Verb, vps: &VpsName, tenant: Option<&TenantName>) -> bool {
        self.0.iter().any(|grant| grant.allows(verb, vps, tenant))
    }

    /// Whether `verb` is granted on all that is that tenant's.
    pub fn allows_tenant(&self, verb: Verb, tenant: &TenantName) -> bool {
        let selected = |selector: &Selector| match selector {
            Selector::All => true,
            Selector::Tenant(own) => own == tenant,
            _ => false,
        };
        self.0.iter().any(|grant| grant.verbs.contains(&verb) && selected(&grant.selector))
    }

    /// `allows`, or the refusal.
    pub fn check(&self, verb: Verb, vps: &VpsName, tenant: Option<&TenantName>) -> Result<(), Fault> {
        if self.allows(verb, vps, tenant) {
            return Ok(());
        }
        Err(Fault::denied(format!("vps \"{vps}\": no grant for `{}`; host.toml gives grants", word(verb))))
    }

    /// Whether a socket may be bound there, or the refusal.
    pub fn check_listen(&self, address: &ListenAddress) -> Result<(), Fault> {
        if self.0.iter().any(|grant| grant.allows_listen(address)) {
            return Ok(());
        }
        Err(Fault::denied(format!("{address}: no grant to listen there; host.toml gives grants")))
    }

    /// Whether a connection to `service` may be made, or the refusal.
    pub fn check_connect(&self, service: &str) -> Result<(), Fault> {
        if self.0.iter().any(|grant| grant.allows_connect(service)) {
            return Ok(());
        }
        Err(Fault::denied(format!("no grant to connect to service \"{service}\"; host.toml gives grants")))
    }

    /// Whether `verb` is granted on all VPSs, or the refusal.
    pub fn check_all(&self, verb: Verb) -> Result<(), Fault> {
        if self.0.iter().any(|grant| grant.verbs.contains(&verb) && grant.selector == Selector::All) {
            return Ok(());
        }
        Err(Fault::denied(format!("no grant for `{}` on all VPSs; host.toml gives grants", word(verb))))
    }

    /// Whether `verb` is granted at all, or the refusal.
    pub fn check_any(&self, verb: Verb) -> Result<(), Fault> {
        if self.holds(verb) {
            return Ok(());
        }
        Err(Fault::denied(format!("no grant for `{}`; host.toml gives grants", word(verb))))
    }

    /// Whether `verb` is granted at all.
    pub fn holds(&self, verb: Verb) -> bool {
        self.0.iter().any(|grant| grant.allows_any(verb))
    }

    /// A capability for `wanted` only, each of which must be within one of these.
    pub fn narrow(&self, wanted: Vec<Grant>) -> Result<Self, Fault> {
        for grant in &wanted {
            let held = |verb: &Verb| {
                self.0.iter().any(|own| own.verbs.contains(verb) && within(&grant.selector, &own.selector))
            };
            if !grant.verbs.iter().all(held) {
                return Err(Fault::denied(format!("`{grant}` is not within your own grants")));
            }
        }
        Ok(Self(wanted))
    }
}

/// Whether `inner` selects nothing that `outer` does not.
fn within(inner: &Selector, outer: &Selector) -> bool {
    match (inner, outer) {
        (_, Selector::All) => true,
        (Selector::Ports(inner), Selector::Ports(outer)) => {
            inner.iter().all(|(a, b)| outer.iter().any(|(c, d)| c <= a && b <= d))
        }
        (Selector::Services(inner), Selector::Services(outer)) => inner.iter().all(|s| outer.contains(s)),
        (inner, outer) => inner == outer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(texts: &[&str]) -> Grants {
        Grants(texts.iter().map(|t| t.parse().unwrap()).collect())
    }

    #[test]
    fn a_tenant_selector_holds_for_that_tenant_only() {
        let own = grants(&["start,stop : tenant=acme", "logs : blog"]);
        let (acme, beta): (TenantName, TenantName) = ("acme".parse().unwrap(), "beta".parse().unwrap());
        let (blog, shop): (VpsName, VpsName) = ("blog".parse().unwrap(), "shop".parse().unwrap());
        assert!(own.check(Verb::Start, &shop, Some(&acme)).is_ok());
        assert!(own.check(Verb::Start, &shop, Some(&beta)).is_err());
        assert!(own.check(Verb::Start, &shop, None).is_err());
        assert!(own.check(Verb::Delete, &shop, Some(&acme)).is_err());
        assert!(own.check(Verb::Logs, &blog, Some(&beta)).is_ok());
        assert!(own.check(Verb::Logs, &shop, Some(&acme)).is_err());
    }

    #[test]
    fn a_narrower_capability_never_holds_more() {
        let own = grants(&["start,stop : tenant=acme", "listen : 80-90", "connect : control,network", "watch : *"]);
        let narrowed = |text: &str| own.narrow(grants(&[text]).0).is_ok();
        for text in
            ["start : tenant=acme", "listen : 80,85-90", "connect : control", "watch : tenant=beta", "watch : a"]
        {
            assert!(narrowed(text), "{text}");
        }
        for text in [
            "start : *",
            "start : tenant=beta",
            "listen : 79-81",
            "listen : *",
            "connect : apps",
            "delete : tenant=acme",
        ] {
            assert!(!narrowed(text), "{text}");
        }
    }
}

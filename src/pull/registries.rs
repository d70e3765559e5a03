//! Which registries the cluster shares.
//!
//! What a registry says of a digest, that there is such a blob, how long it is, and who may have it, is believed here for
//! everybody on the node, and what is read there is announced to the mesh. That takes a registry that checks what is
//! pushed to it: one that anybody can set up could stall a blob, lie about its length, have its readers banned for its
//! bytes, and hand out what is private elsewhere. So it takes somebody's word: the settings, hosts.toml, or the node's own
//! pulls. Every other registry is passed on as it is; nothing of it is kept, announced, or served from here.

/// Hosts, some with placeholders.
#[derive(Clone, Debug, Default)]
pub struct Registries(Vec<String>);

impl Registries {
    /// `host` for every port of it, `host:port`; `*` for any one word between the dots, or alone for every registry.
    #[must_use]
    pub fn new(hosts: Vec<String>) -> Self {
        Self(hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect())
    }

    /// Whether this very registry is listed, by its name and port.
    #[must_use]
    pub fn list(&self, registry: &str) -> bool {
        self.0.iter().any(|listed| listed.eq_ignore_ascii_case(registry))
    }

    #[must_use]
    pub fn include(&self, registry: &str) -> bool {
        let registry = registry.to_ascii_lowercase();
        let name = match registry.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            Some(_) | None => &registry,
        };
        self.0.iter().any(|listed| listed == "*" || matches(listed, &registry) || matches(listed, name))
    }
}

fn matches(listed: &str, host: &str) -> bool {
    let (listed, host) = (listed.split('.'), host.split('.'));
    listed.clone().count() == host.clone().count()
        && listed.zip(host).all(|(listed, word)| listed == word || (listed == "*" && !word.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_listed_by_name_by_port_or_by_pattern() {
        let hosts = ["docker.io", "R.local:5000", "*.azurecr.io", "*.dkr.ecr.*.amazonaws.com", "[::1]"];
        let registries = Registries::new(hosts.map(str::to_owned).to_vec());
        for host in
            ["docker.io", "docker.io:443", "r.local:5000", "a.azurecr.io", "1.dkr.ecr.eu-1.amazonaws.com"]
        {
            assert!(registries.include(host), "{host}");
        }
        assert!(registries.include("[::1]:5000"));
        for host in
            ["r.local", "r.local:5001", "azurecr.io", "a.b.azurecr.io", "evil.com", "docker.io.evil.com"]
        {
            assert!(!registries.include(host), "{host}");
        }
        assert!(Registries::new(vec!["*".into()]).include("evil.com:5000"));
        for (host, is_listed) in [
            ("docker.io", true),
            ("r.local:5000", true),
            ("docker.io:1", false),
            ("a.azurecr.io", false),
            ("evil.com", false),
        ] {
            assert_eq!(registries.list(host), is_listed, "{host}");
        }
        assert!(Registries::new(vec!["Quay.io".into()]).list("quay.io"));
    }
}

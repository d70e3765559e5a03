//! Each module's settings, taken from the file's.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{Settings, SettingsError, rates, run::RunError};
use crate::{
    door::{
        self,
        registry::{Access, Authority, AuthorityError},
    },
    identity::{self, Identity},
    layer,
    mesh::{self, Role},
    origin::{self, ProviderFiles},
    pull::{self, OfflineTags, Registries},
    snapshot::{self, Durability},
    store,
};

pub(super) fn store(settings: &Settings, data_dir: &Path) -> Result<store::Settings, SettingsError> {
    Ok(store::Settings {
        dir: data_dir.to_owned(),
        quota: settings.share("store.quota", data_dir)?,
        keep_free: settings.share("store.keep_free", data_dir)?,
        expire_after: settings.duration("store.expire_after").unwrap_or_default(),
        ..store::Settings::default()
    })
}

pub(super) fn snapshots(settings: &Settings, root: &Path) -> snapshot::Settings {
    let sync = if settings.switch("containerd.sync") { Durability::Tree } else { Durability::Record };
    snapshot::Settings { root: root.to_owned(), sync }
}

/// Where registries are named, a folder of hosts.toml and the registry of names without a host apart.
const REGISTRIES: [&str; 2] = ["mirror.registries", "mirror.proxy_hosts"];

fn registries(settings: &Settings) -> Vec<String> {
    REGISTRIES.into_iter().flat_map(|key| settings.texts(key)).collect()
}

/// Those of them that the operator has named himself.
fn written(settings: &Settings) -> Vec<String> {
    let own = REGISTRIES.into_iter().filter(|key| !settings.is_default(key));
    own.flat_map(|key| settings.texts(key)).collect()
}

pub(super) fn pulls(settings: &Settings) -> pull::Settings {
    let only = (settings.text("registry.strangers").as_deref() == Some("leave")).then(|| {
        let default = settings.text("mirror.default_upstream");
        Registries::new(registries(settings).into_iter().chain(default).collect())
    });
    let host_readers = settings.count("registry.cluster_concurrency").unwrap_or(1);
    let offline_tags = match settings.text("mirror.offline_tags").as_deref() {
        Some("own") => OfflineTags::Own,
        Some("members") => OfflineTags::Members,
        _ => OfflineTags::No,
    };
    pull::Settings { only, host_readers, offline_tags, ..pull::Settings::default() }
}

pub(super) fn mirror(settings: &Settings) -> Result<door::registry::Settings, AuthorityError> {
    let hosts = settings.texts("mirror.proxy_hosts");
    let (cert, key) = (settings.path("mirror.ca_cert"), settings.path("mirror.ca_key"));
    let authority = match (hosts.is_empty(), cert.zip(key)) {
        (true, _) => None,
        (false, None) => return Err(AuthorityError::Missing),
        (false, Some((cert, key))) => Some(Authority::load(hosts, &cert, &key)?),
    };
    let default_upstream = settings.text("mirror.default_upstream").unwrap_or_default();
    let named = written(settings).into_iter().chain([default_upstream.clone()]);
    Ok(door::registry::Settings {
        authority,
        registries: Registries::new(registries(settings)),
        named: Registries::new(named.collect()),
        default_upstream,
        access: match settings.text("mirror.access").as_deref() {
            Some("verify") => Access::Verify,
            Some("digest") => Access::Digest,
            _ => Access::OfflineOk,
        },
        tag_ttl: settings.duration("mirror.tag_ttl").unwrap_or_default(),
    })
}

/// `own_doors` are where this node answers as a registry.
///
/// # Errors
/// Half of what names credential providers.
pub(super) fn origin(settings: &Settings, own_doors: Vec<SocketAddr>) -> Result<origin::Settings, RunError> {
    let config = settings.path("registry.credential_provider_config");
    let credential_providers = match (config, settings.path("registry.credential_provider_bin_dir")) {
        (Some(config), Some(bin_dir)) => Some(ProviderFiles { config, bin_dir }),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => return Err(RunError::HalfProviders),
    };
    Ok(origin::Settings {
        credential_providers,
        hosts_dir: settings.texts("registry.hosts_dir").into_iter().map(Into::into).collect(),
        docker_config: settings.path("registry.docker_config").or_else(docker_config),
        plain_http: settings.texts("registry.plain_http"),
        origin_rate: settings.size("registry.origin_rate"),
        origin_concurrency: settings.count("registry.origin_concurrency").unwrap_or(1),
        own_doors,
    })
}

/// Where docker's own client keeps credentials. That there may be none is for the reader to find.
fn docker_config() -> Option<PathBuf> {
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
    // systemd gives a service of root no home.
    folder.or_else(home).or_else(|| Some("/root/.docker".into())).map(|folder| folder.join("config.json"))
}

pub(super) fn identity(settings: &Settings) -> identity::Settings {
    identity::Settings {
        ca: settings.path("mesh.ca").unwrap_or_default(),
        cert: settings.path("mesh.cert").unwrap_or_default(),
        key: settings.path("mesh.key").unwrap_or_default(),
    }
}

/// Where the mesh door is to listen.
pub(super) fn mesh_listen(settings: &Settings) -> SocketAddr {
    settings.listen("mesh.listen").expect("the key has a default")
}

/// `bound` is where it really listens.
pub(super) fn mesh(
    settings: &Settings,
    identity: Option<&Identity>,
    bound: Option<SocketAddr>,
) -> Result<mesh::Settings, RunError> {
    let name = settings
        .text("node.name")
        .or_else(|| identity.map(Identity::name))
        .or_else(host_name)
        .ok_or(SettingsError::NoName)?;
    let members = settings.texts("mesh.members");
    let members =
        members.iter().map(|member| member.parse()).collect::<Result<_, _>>().map_err(RunError::Mesh)?;
    let role = match settings.text("node.role").as_deref() {
        Some("seed") => Role::Seed,
        Some("leech") => Role::Leech,
        _ => Role::Peer,
    };
    Ok(mesh::Settings {
        listen: bound.unwrap_or_else(|| mesh_listen(settings)),
        advertise: settings.text("mesh.advertise"),
        members,
        name,
        zone: settings.text("node.zone"),
        role,
        upload_rate: settings.size("mesh.upload_rate"),
        download_rate: settings.size("mesh.download_rate"),
    })
}

fn host_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_str().ok()?.to_owned();
    (!name.is_empty()).then_some(name)
}

pub(super) fn rates(settings: &Settings) -> rates::Settings {
    let always = ["mesh.upload_rate", "mesh.download_rate", "registry.origin_rate"];
    let schedule = settings.texts("rates.schedule");
    rates::Settings {
        always: always.map(|name| settings.size(name)),
        schedule: schedule.iter().map(|entry| entry.parse().expect("read strictly")).collect(),
    }
}

pub(super) fn layers(settings: &Settings) -> layer::Settings {
    layer::Settings {
        prepare_budget: settings.duration("containerd.prepare_budget"),
        hold_idle_max: settings.duration("containerd.hold_idle_max"),
        hold_max: settings.duration("containerd.hold_max"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_of_the_defaults_is_shared_and_not_the_operators_own() {
        let written =
            |text: &str| written(&Settings::parse(Path::new("/etc/flotilla/config.toml"), text).unwrap());
        assert!(registries(&Settings::parse(Path::new("/x"), "").unwrap()).contains(&"quay.io".to_owned()));
        assert_eq!(written(""), Vec::<String>::new());
        let text = "[mirror]\nregistries = [\"r.local\"]\nproxy_hosts = [\"p.local\"]";
        assert_eq!(written(text), ["r.local", "p.local"]);
    }
}

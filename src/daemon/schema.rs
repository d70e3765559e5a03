//! Every key of the settings file: its form, its default, what it is for.
//!
//! `settings` reads the file against this table, `flotilla config` prints it, and a misspelt key is answered with
//! its nearest neighbour here.

/// What a value must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Any text.
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    /// An absolute path.
    Path,
    /// An absolute path, or a list of them.
    Paths,
    /// A text, or a list of them.
    Texts,
    /// A registry's host, with port or without, `*` for any word of it; or a list of them.
    Hosts,
    /// `"host:port"` or `"dns:name:port"`, or a list of them.
    Members,
    /// A list of entries such as `"mon-fri 08:00-18:00 upload=50MiB"`.
    Schedule,
    /// `"5s"`, `"168h"`.
    Duration,
    /// A size a second, from [`RATE_MIN`] on, or `"unlimited"`.
    Rate,
    /// A member's name, which is a DNS name.
    Name,
    /// Letters, digits, `-`, `_` and `.`.
    Zone,
    /// `"10GiB"`, a number of bytes, or `"10%"` of the file system.
    Share,
    /// `"127.0.0.1:7440"`, `"[::]:7442"`; port 0 picks one.
    Listen,
    /// A whole number from 1 on.
    Count,
    /// `true` or `false`.
    Switch,
}

impl Form {
    /// How the form is described to somebody who wrote something else.
    #[must_use]
    pub(super) fn wants(self) -> String {
        match self {
            Self::Text => "a text".into(),
            Self::Word(words) => format!("one of \"{}\"", words.join("\", \"")),
            Self::Path => "an absolute path".into(),
            Self::Paths => "an absolute path or a list of them".into(),
            Self::Hosts => "a host such as \"registry.example:5000\" or a list of them".into(),
            Self::Texts => "a text or a list of texts".into(),
            Self::Members => "\"host:port\" or \"dns:name:port\", or a list of them".into(),
            Self::Schedule => {
                "a list of entries such as \"mon-fri 08:00-18:00 upload=50MiB origin=unlimited\"".into()
            }
            Self::Duration => "a duration such as \"5s\" or \"168h\"".into(),
            Self::Rate => "a size a second such as \"50MiB\", not below \"16KiB\", or \"unlimited\"".into(),
            Self::Name => "a DNS name in lower case such as \"node1\"".into(),
            Self::Zone => "up to 64 letters, digits, `-`, `_` and `.`".into(),
            Self::Share => "a size such as \"10GiB\" or a share such as \"10%\"".into(),
            Self::Listen => "an address and port such as \"127.0.0.1:7440\"".into(),
            Self::Count => "a whole number from 1 on".into(),
            Self::Switch => "true or false".into(),
        }
    }
}

/// Least bytes a second that somebody can mean: less than one record of TLS a second, the smallest thing that is sent, is
/// a unit forgotten.
pub(super) const RATE_MIN: u64 = 16 << 10;

/// One key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    pub(super) form: Form,
    /// As it would stand in the file; `None` where the value is found out at start, as `about` says.
    pub(super) default: Option<&'static str>,
    pub(super) about: &'static str,
}

const fn key(
    section: &'static str,
    name: &'static str,
    form: Form,
    default: Option<&'static str>,
    about: &'static str,
) -> Key {
    Key { section, name, form, default, about }
}

/// All keys, in the order in which `flotilla config` prints them.
pub(super) const KEYS: &[Key] = &[
    key("node", "name", Form::Name, None, "this member's name; the certificate's name, else the host's"),
    key(
        "node",
        "role",
        Form::Word(&["peer", "seed", "leech"]),
        Some("\"peer\""),
        "seed keeps blobs for others, leech gives none",
    ),
    key("node", "zone", Form::Zone, None, "where the node stands, for choosing near peers; none"),
    key(
        "node",
        "data_dir",
        Form::Path,
        Some("\"/var/lib/flotilla\""),
        "blobs, best on the file system of containerd's content store",
    ),
    key("node", "run_dir", Form::Path, Some("\"/run/flotilla\""), "sockets"),
    key(
        "containerd",
        "address",
        Form::Path,
        Some("\"/run/containerd/containerd.sock\""),
        "containerd's socket",
    ),
    key(
        "containerd",
        "namespaces",
        Form::Texts,
        Some("[]"),
        "whose content is offered to the mesh; empty for all",
    ),
    key(
        "containerd",
        "snapshot_root",
        Form::Path,
        Some("\"/var/lib/containerd/io.containerd.snapshotter.v1.flotilla\""),
        "layer trees; containerd 1.6 counts disk use here and nowhere else",
    ),
    key(
        "containerd",
        "prepare_budget",
        Form::Duration,
        None,
        "how long all Prepares of one pull of one image may wait together; 10s on containerd 2, 20s on 1.6 and 1.7",
    ),
    key(
        "containerd",
        "hold_idle_max",
        Form::Duration,
        Some("\"60s\""),
        "a held layer without a proven piece for this long is left to containerd",
    ),
    key(
        "containerd",
        "hold_max",
        Form::Duration,
        None,
        "longest hold of one layer; 60s on containerd 1.6 and 1.7, where a hold slows other writes, none on 2",
    ),
    key("containerd", "layer_form", Form::Word(&["files"]), Some("\"files\""), "how a layer's tree is kept"),
    key(
        "containerd",
        "sync",
        Form::Switch,
        Some("true"),
        "a layer's files reach the disk before the layer is reported as there",
    ),
    key(
        "containerd",
        "cri_proxy",
        Form::Switch,
        Some("false"),
        "cri.sock in node.run_dir is containerd's image service, for kubelet's --image-service-endpoint: pulls start here \
         with a pod's pull secrets before containerd asks",
    ),
    key(
        "mesh",
        "listen",
        Form::Listen,
        Some("\"0.0.0.0:7442\""),
        "where other members reach this one: mutual TLS and nothing else",
    ),
    key(
        "mesh",
        "advertise",
        Form::Text,
        None,
        "host:port that others are told; the address of the route to them",
    ),
    key("mesh", "members", Form::Members, Some("[]"), "\"host:port\" or \"dns:name:port\" of some members"),
    key(
        "mesh",
        "ca",
        Form::Path,
        Some("\"/etc/flotilla/tls/ca.pem\""),
        "the roots that members' certificates are checked against",
    ),
    key(
        "mesh",
        "cert",
        Form::Path,
        Some("\"/etc/flotilla/tls/node.pem\""),
        "this node's certificate, its name first among the DNS names",
    ),
    key("mesh", "key", Form::Path, Some("\"/etc/flotilla/tls/node-key.pem\""), "its key"),
    key("mesh", "upload_rate", Form::Rate, None, "bytes a second to other members; unlimited"),
    key("mesh", "download_rate", Form::Rate, None, "bytes a second from other members; unlimited"),
    key(
        "rates",
        "schedule",
        Form::Schedule,
        Some("[]"),
        "other rates at times of the week, by this node's clock and time zone: \"DAYS FROM-UNTIL FLOW=RATE…\", flows \
         upload, download, origin; of several entries for one time the first that names a flow counts",
    ),
    key(
        "store",
        "quota",
        Form::Share,
        Some("\"10%\""),
        "most bytes of blobs that containerd does not link, and of arriving ones",
    ),
    key(
        "store",
        "keep_free",
        Form::Share,
        Some("\"20%\""),
        "below this much free space, blobs that containerd dropped go first; above kubelet's 15%",
    ),
    key("store", "expire_after", Form::Duration, Some("\"168h\""), "a blob unused for this long goes"),
    key(
        "registry",
        "hosts_dir",
        Form::Paths,
        Some("[\"/etc/containerd/certs.d\", \"/etc/docker/certs.d\"]"),
        "hosts.toml folders, as containerd reads them",
    ),
    key(
        "registry",
        "docker_config",
        Form::Path,
        None,
        "a docker config.json with credentials; $DOCKER_CONFIG, ~/.docker",
    ),
    key(
        "registry",
        "credential_provider_config",
        Form::Path,
        None,
        "kubelet's --image-credential-provider-config: asked for what docker_config does not know; none",
    ),
    key(
        "registry",
        "credential_provider_bin_dir",
        Form::Path,
        None,
        "kubelet's --image-credential-provider-bin-dir",
    ),
    key(
        "registry",
        "strangers",
        Form::Word(&["share", "leave"]),
        Some("\"share\""),
        "share: layers of every registry that containerd pulls from are the cluster's; leave: those of a registry that \
         nobody has named are left to containerd",
    ),
    key(
        "registry",
        "plain_http",
        Form::Hosts,
        Some("[]"),
        "hosts, with port or without, that are spoken to without TLS",
    ),
    key("registry", "origin_rate", Form::Rate, None, "bytes a second from registries; unlimited"),
    key("registry", "origin_concurrency", Form::Count, Some("4"), "requests at once to one registry host"),
    key(
        "registry",
        "cluster_concurrency",
        Form::Count,
        Some("32"),
        "reads of blobs at once from one registry host, by all members together",
    ),
    key(
        "mirror",
        "listen",
        Form::Listen,
        Some("\"127.0.0.1:7441\""),
        "the registry that clients of this node pull from; mirror.sock in node.run_dir is the same",
    ),
    key(
        "mirror",
        "default_upstream",
        Form::Text,
        Some("\"docker.io\""),
        "whose images are meant by names without a registry",
    ),
    key(
        "mirror",
        "registries",
        Form::Hosts,
        Some(SHARED_REGISTRIES),
        "registries that the cluster shares, as are default_upstream, proxy_hosts, registry.plain_http, those with a \
         folder in registry.hosts_dir and those that containerd pulls from by the snapshotter; others are passed on as \
         they are",
    ),
    key(
        "mirror",
        "access",
        Form::Word(&["verify", "digest", "offline-ok"]),
        Some("\"offline-ok\""),
        "offline-ok: the registry is asked who may have what, and while it is down a digest is enough; verify: then \
         nobody; digest: it always is",
    ),
    key(
        "mirror",
        "tag_ttl",
        Form::Duration,
        Some("\"10s\""),
        "how long a tag's meaning counts before its registry is asked again",
    ),
    key(
        "mirror",
        "offline_tags",
        Form::Word(&["no", "own", "members"]),
        Some("\"no\""),
        "while a registry is down its tags are: own: what it last said to this node; members: the latest that it said \
         to two of the cluster, else to this node, else to any, which nothing proves; no: unknown",
    ),
    key(
        "mirror",
        "proxy_hosts",
        Form::Hosts,
        Some("[]"),
        "hosts, with port or without, whose TLS the proxy on the mirror's port opens; a blind tunnel to all others",
    ),
    key(
        "mirror",
        "ca_cert",
        Form::Path,
        None,
        "the CA that signs for these hosts, which clients must trust; none",
    ),
    key("mirror", "ca_key", Form::Path, None, "its key"),
    key(
        "admin",
        "listen",
        Form::Listen,
        Some("\"127.0.0.1:7440\""),
        "/metrics, /healthz, /readyz and the status page",
    ),
    key(
        "admin",
        "token_file",
        Form::Path,
        None,
        "holds the bearer token of those who may order preheating over HTTP; without it nobody may",
    ),
    key(
        "log",
        "level",
        Form::Text,
        Some("\"info\""),
        "error, warn, info, debug, trace, or a filter such as \"info,flotilla::pull=debug\"",
    ),
    key("log", "format", Form::Word(&["text", "json"]), Some("\"text\""), "for people or for a log store"),
];

/// Public registries, and those that clouds keep for their customers: each checks what is pushed to it against its digest.
const SHARED_REGISTRIES: &str = r#"["docker.io", "quay.io", "ghcr.io", "gcr.io", "*.gcr.io", "*.pkg.dev", "registry.k8s.io", "mcr.microsoft.com", "*.azurecr.io", "public.ecr.aws", "*.dkr.ecr.*.amazonaws.com", "registry.gitlab.com", "nvcr.io", "registry.access.redhat.com", "registry.redhat.io", "cgr.dev"]"#;

/// The known text nearest to `typed`, if it is near enough to have been meant.
#[must_use]
pub(super) fn nearest(typed: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    known
        .map(|candidate| (distance(typed, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= candidate.len().max(typed.len()) / 2)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_keyboard_finds_its_key() {
        let names = || KEYS.iter().map(|key| key.name);
        assert_eq!(nearest("expire_afer", names()), Some("expire_after"));
        assert_eq!(nearest("adress", names()), Some("address"));
        assert_eq!(nearest("zzzzzzzzzzzz", names()), None);
    }
}

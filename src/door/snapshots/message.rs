//! Snapshots as containerd's messages.

use crate::{
    snapshot::{Info, Kind, Mount, Usage},
    wire::containerd::{services::snapshots::v1 as api, types},
};

pub(super) fn mount(mount: Mount) -> types::Mount {
    let Mount { kind, source, options } = mount;
    types::Mount { r#type: kind.to_owned(), source, target: String::new(), options }
}

pub(super) fn info(info: Info) -> api::Info {
    let kind = match info.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    api::Info {
        name: info.name,
        parent: info.parent,
        kind: kind.into(),
        created_at: Some(info.created.into()),
        updated_at: Some(info.updated.into()),
        labels: info.labels,
    }
}

pub(super) fn usage(usage: Usage) -> api::UsageResponse {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    api::UsageResponse { size: signed(usage.size_bytes), inodes: signed(usage.inodes) }
}

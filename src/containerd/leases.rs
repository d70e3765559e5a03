//! Leases: what keeps fresh content from containerd's garbage collection.

use std::{collections::HashMap, time::SystemTime};

use tonic::Code;

use super::{CallError, Namespace};
use crate::wire::containerd::services::leases::v1::{
    CreateRequest, DeleteRequest, leases_client::LeasesClient,
};

/// Label with the moment after which containerd drops a lease (`metadata/gc.go`, every version from 1.6).
const EXPIRE_LABEL: &str = "containerd.io/gc.expire";

impl Namespace {
    /// Makes a lease that containerd drops by itself after `expires`. One of that name already: success, and
    /// its own expiry stays.
    ///
    /// # Errors
    /// The call failed.
    pub async fn create_lease(&self, id: &str, expires: SystemTime) -> Result<(), CallError> {
        let asked = format!("create lease {id} in namespace {}", self.name());
        let message = CreateRequest { id: id.to_owned(), labels: HashMap::from([expiry(id, expires)?]) };
        let request = self.request(message)?;
        let mut service = LeasesClient::new(self.client.channel());
        match self.client.ask(&asked, service.create(request)).await {
            Err(error) if error.code() != Some(Code::AlreadyExists) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Drops a lease. None there: that is what was wanted.
    ///
    /// # Errors
    /// The call failed.
    pub async fn delete_lease(&self, id: &str) -> Result<(), CallError> {
        let asked = format!("delete lease {id} in namespace {}", self.name());
        let request = self.request(DeleteRequest { id: id.to_owned(), sync: false })?;
        let mut service = LeasesClient::new(self.client.channel());
        match self.client.ask(&asked, service.delete(request)).await {
            Err(error) if error.code() != Some(Code::NotFound) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// The label that makes a lease end, in RFC 3339.
fn expiry(id: &str, expires: SystemTime) -> Result<(String, String), CallError> {
    let moment = jiff::Timestamp::try_from(expires)
        .map_err(|_| CallError::Name { what: "expiry of lease", name: id.to_owned() })?;
    Ok((EXPIRE_LABEL.into(), format!("{moment:.0}")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_expiry_is_written_as_containerd_parses_it() {
        let moment = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 500);
        let (key, value) = expiry("any", moment).unwrap();
        assert_eq!(key, "containerd.io/gc.expire");
        assert_eq!(value, "2023-11-14T22:13:20Z");
    }
}

//! What a PullImage says: which image, and with whose credentials. Pure.

use std::sync::Arc;

use prost::Message as _;

use crate::{
    oci::Reference,
    origin::{Asker, Credential, Lent},
    wire::cri::{AuthConfig, PullImageRequest},
};

/// Before the message: a byte that says whether it is compressed, and four for its length (gRPC over HTTP/2).
const PREFIX_LEN: usize = 5;

/// An image that is about to be pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) image: Reference,
    pub(super) asker: Asker,
}

/// Reads a request; `None` for one that only containerd understands.
pub(super) fn read(body: &[u8]) -> Option<Wish> {
    let (prefix, rest) = body.split_at_checked(PREFIX_LEN)?;
    let [compressed, len @ ..] = prefix else { return None };
    let len = usize::try_from(u32::from_be_bytes(len.try_into().ok()?)).ok()?;
    let message = rest.get(..len).filter(|_| *compressed == 0)?;
    let request = PullImageRequest::decode(message).ok()?;
    let image: Reference = request.image?.image.parse().ok()?;
    let lent = request.auth.and_then(|auth| credential(auth, &image));
    let asker = lent.map_or(Asker::Node, |credential| Asker::Lent(Arc::new(Lent::new(credential))));
    Some(Wish { image, asker })
}

/// What containerd would take from it (`ParseAuth` of its CRI), for the registry of this image alone.
fn credential(auth: AuthConfig, image: &Reference) -> Option<Credential> {
    if !auth.server_address.is_empty() && host_of(&auth.server_address) != image.repository.host {
        return None;
    }
    if !auth.username.is_empty() {
        return Some(Credential::Password { user: auth.username, password: auth.password });
    }
    if !auth.identity_token.is_empty() {
        return Some(Credential::IdentityToken(auth.identity_token));
    }
    let mut login = Credential::from_login(&auth.auth)?;
    if let Credential::Password { password, .. } = &mut login {
        password.truncate(password.trim_end_matches('\0').len());
    }
    Some(login)
}

fn host_of(address: &str) -> &str {
    let bare = address.split_once("://").map_or(address, |(_, bare)| bare);
    match bare.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;
    use crate::wire::cri::ImageSpec;

    fn framed(compressed: u8, message: &[u8]) -> Vec<u8> {
        let len = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[compressed][..], &len, message].concat()
    }

    fn request(image: &str, auth: Option<AuthConfig>) -> Vec<u8> {
        let image = Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() });
        PullImageRequest { image, auth, sandbox_config: None }.encode_to_vec()
    }

    fn lent(auth: AuthConfig) -> Option<Credential> {
        match read(&framed(0, &request("r.local:5000/a:v1", Some(auth)))).unwrap().asker {
            Asker::Lent(lent) => Some(lent.credential().clone()),
            Asker::Node => None,
            Asker::Client(_) => panic!("nobody's pass"),
        }
    }

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password { user: user.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn image_and_credentials_are_read() {
        let wish = read(&framed(0, &request("debian", None))).unwrap();
        assert_eq!(
            (wish.image.to_string().as_str(), wish.asker),
            ("docker.io/library/debian:latest", Asker::Node)
        );
        let auth = AuthConfig::default();
        let with = AuthConfig { username: "me".into(), password: "p".into(), ..auth.clone() };
        assert_eq!(lent(with.clone()), password("me", "p"));
        assert_eq!(
            lent(AuthConfig { auth: STANDARD.encode("me:p:q"), ..auth.clone() }),
            password("me", "p:q")
        );
        let token = AuthConfig { identity_token: "t".into(), ..auth.clone() };
        assert_eq!(lent(token), Some(Credential::IdentityToken("t".into())));
        assert_eq!(lent(auth), None);
        for (address, is_shown) in
            [("https://r.local:5000/v2/", true), ("r.local:5000", true), ("other.local", false)]
        {
            let filed = AuthConfig { server_address: address.into(), ..with.clone() };
            assert_eq!(lent(filed).is_some(), is_shown, "{address}");
        }
    }

    #[test]
    fn what_is_not_understood_is_left_to_containerd() {
        let good = request("r.local/a", None);
        assert_eq!(read(&framed(1, &good)), None, "compressed");
        assert_eq!(read(&framed(0, &good)[..6]), None, "cut");
        assert_eq!(read(&[]), None);
        assert_eq!(read(&framed(0, &request("not//an image", None))), None);
        assert_eq!(read(&framed(0, b"\xff\xff\xff")), None);
    }
}

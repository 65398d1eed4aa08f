//! The service's own way to a token: an application credential or a password,
//! from `[images.keystone]`.
//!
//! A token is asked for when it is needed and never kept: an image takes
//! longer than the question, and what is not kept can neither expire nor leak.

use std::time::Duration;

use reqwest::{ClientBuilder, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use super::failure::without_url;
use crate::config::Keystone;
use crate::fault::{Fault, FaultKind, OrFault, Result};

/// How long Keystone may take to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Most bytes of a secret.
const MAX_SECRET: usize = 4096;

/// What Keystone gives.
pub(super) struct Grant {
    /// A token.
    pub token: String,
    /// The image endpoint of the service catalogue.
    pub endpoint: String,
}

#[derive(Deserialize)]
struct Answer {
    token: Token,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    catalog: Vec<Service>,
}

#[derive(Deserialize)]
struct Service {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    interface: String,
    #[serde(default)]
    region_id: Option<String>,
    url: String,
}

/// Asks for a token and for where Glance is.
pub(super) async fn grant(client: ClientBuilder, keystone: &Keystone) -> Result<Grant> {
    let client = client.timeout(ANSWER).build().or_fault("preparing the question to Keystone")?;
    let request = client.post(tokens_url(keystone)?).json(&question(keystone)?);
    let answer = request.send().await.map_err(|e| unavailable(without_url(e)))?;
    match answer.status() {
        StatusCode::CREATED => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            return Err(Fault::new(
                FaultKind::GlanceForbidden,
                "Keystone does not accept the credentials of images.keystone",
            ));
        }
        status => return Err(unavailable(format!("it answered {status}"))),
    }
    let token = answer
        .headers()
        .get("x-subject-token")
        .and_then(|token| token.to_str().ok())
        .map(str::to_owned)
        .ok_or_else(|| unavailable("its answer has no token"))?;
    let answer: Answer = answer.json().await.map_err(|e| unavailable(without_url(e)))?;
    let endpoint = endpoint(&answer.token.catalog, keystone)?;
    Ok(Grant { token, endpoint })
}

fn tokens_url(keystone: &Keystone) -> Result<Url> {
    let bad = || Fault::invalid("images.keystone.auth_url", "must be a URL");
    let base = keystone.auth_url.trim_end_matches('/');
    let base = base.strip_suffix("/v3").unwrap_or(base);
    Url::parse(&format!("{base}/v3/auth/tokens")).map_err(|_| bad())
}

fn question(keystone: &Keystone) -> Result<Value> {
    let secret = secret(keystone)?;
    let id = &keystone.application_credential_id;
    if !id.is_empty() {
        let credential = json!({"id": id, "secret": secret});
        return Ok(json!({"auth": {"identity": {
            "methods": ["application_credential"], "application_credential": credential,
        }}}));
    }
    let user = json!({
        "name": keystone.username, "password": secret,
        "domain": {"name": keystone.user_domain_name},
    });
    let project = json!({
        "name": keystone.project_name, "domain": {"name": keystone.project_domain_name},
    });
    Ok(json!({"auth": {
        "identity": {"methods": ["password"], "password": {"user": user}},
        "scope": {"project": project},
    }}))
}

/// Read each time, so that a changed one counts at once.
fn secret(keystone: &Keystone) -> Result<String> {
    let path = &keystone.secret_file;
    let bad = |why: &str| {
        let why = format!("{}: {why}", path.display());
        Fault::invalid("images.keystone.secret_file", why)
    };
    let text = std::fs::read_to_string(path).map_err(|error| bad(&error.to_string()))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(bad("it is empty")),
        secret if secret.len() > MAX_SECRET => Err(bad("it is longer than any secret")),
        secret => Ok(secret.to_owned()),
    }
}

fn endpoint(catalog: &[Service], keystone: &Keystone) -> Result<String> {
    let endpoints = catalog.iter().filter(|service| service.kind == "image");
    let region = |endpoint: &&Endpoint| {
        keystone.region_name.is_empty()
            || endpoint.region_id.as_deref() == Some(keystone.region_name.as_str())
    };
    endpoints
        .flat_map(|service| &service.endpoints)
        .filter(region)
        .find(|endpoint| endpoint.interface == keystone.interface)
        .map(|endpoint| endpoint.url.clone())
        .ok_or_else(|| {
            let Keystone { interface, region_name, .. } = keystone;
            unavailable(format!(
                "its catalogue has no {interface} endpoint of the type image in the region \
                 {region_name:?}; see images.keystone.interface and region_name"
            ))
        })
}

fn unavailable(why: impl std::fmt::Display) -> Fault {
    Fault::new(FaultKind::GlanceUnavailable, format!("Keystone: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn keystone(secret: &str) -> (tempfile::NamedTempFile, Keystone) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(secret.as_bytes()).unwrap();
        let secret_file = file.path().to_owned();
        (file, Keystone { secret_file, ..Keystone::default() })
    }

    #[test]
    fn both_kinds_of_credentials_are_asked_with() {
        let (_file, mut keystone) = keystone("s3cret\n");
        keystone.username = "berth".into();
        keystone.project_name = "service".into();
        let password = question(&keystone).unwrap();
        assert_eq!(password["auth"]["identity"]["password"]["user"]["password"], "s3cret");
        assert_eq!(password["auth"]["scope"]["project"]["domain"]["name"], "Default");
        keystone.application_credential_id = "0a1b".into();
        let credential = question(&keystone).unwrap();
        assert_eq!(credential["auth"]["identity"]["application_credential"]["secret"], "s3cret");
        assert!(credential["auth"].get("scope").is_none());
    }

    #[test]
    fn a_secret_that_is_none_is_named_and_not_shown() {
        for bad in ["", "\n", &"x".repeat(5000)] {
            let (_file, keystone) = keystone(bad);
            let fault = secret(&keystone).unwrap_err();
            assert_eq!(fault.field.as_deref(), Some("images.keystone.secret_file"));
            assert!(!fault.detail.contains("xxx"));
        }
    }

    #[test]
    fn the_endpoint_of_the_region_and_interface() {
        let of = |interface: &str, region: &str, url: &str| Endpoint {
            interface: interface.into(),
            region_id: Some(region.into()),
            url: url.into(),
        };
        let endpoints = vec![
            of("public", "one", "http://public"),
            of("internal", "one", "http://one"),
            of("internal", "two", "http://two"),
        ];
        let catalog = [
            Service { kind: "compute".into(), endpoints: vec![of("internal", "two", "http://no")] },
            Service { kind: "image".into(), endpoints },
        ];
        let mut keystone = Keystone::default();
        assert_eq!(endpoint(&catalog, &keystone).unwrap(), "http://one");
        keystone.region_name = "two".into();
        assert_eq!(endpoint(&catalog, &keystone).unwrap(), "http://two");
        keystone.region_name = "three".into();
        assert!(endpoint(&catalog, &keystone).unwrap_err().detail.contains("three"));
    }

    #[test]
    fn auth_urls_with_and_without_the_version() {
        for auth_url in ["http://h:5000", "http://h:5000/", "http://h:5000/v3", "http://h:5000/v3/"]
        {
            let keystone = Keystone { auth_url: auth_url.into(), ..Keystone::default() };
            assert_eq!(tokens_url(&keystone).unwrap().as_str(), "http://h:5000/v3/auth/tokens");
        }
    }
}

//! Every route there is.

use utoipa_actix_web::service_config::ServiceConfig;

use super::{
    console, events, exec, host, images, incoming, instances, interfaces, operations,
    remote_consoles, service, verbs, volumes,
};

/// Adds them all. Through `service(…)` only: others would be served without
/// being described.
pub(super) fn routes(config: &mut ServiceConfig<'_>) {
    config
        .configure(host::routes)
        .configure(instances::routes)
        .configure(verbs::routes)
        .configure(interfaces::routes)
        .configure(volumes::routes)
        .configure(console::routes)
        .configure(remote_consoles::routes)
        .configure(exec::routes)
        .configure(images::routes)
        .configure(incoming::routes)
        .configure(operations::routes)
        .configure(events::routes)
        .configure(service::routes);
}

//! Whether a disk image may be read as it is to be read: by what the operator
//! allows, and by what Glance says about the image.

use uuid::Uuid;

use crate::config::{self, KernelMounts};
use crate::fault::{Fault, FaultKind, Result};
use crate::image::arrival::Verified;
use crate::image::recognise::{Content, FileSystem};
use crate::image::source;
use crate::openstack::Access;
use crate::openstack::describe::{Described, describe};
use crate::types::ImageImport;

/// An image that is imported, and what is allowed.
pub(super) struct Policy<'a> {
    pub id: Uuid,
    pub request: &'a ImageImport,
    pub config: &'a config::Images,
}

impl Policy<'_> {
    /// Refuses an image of which Glance says that it is of another format than
    /// it is, as far as there is a way to ask.
    pub(super) fn check_label(&self, label: &str) -> Result<()> {
        let said = self.described()?.and_then(|(described, _)| described.disk_format);
        match said {
            Some(said) if said != label => Err(Fault::new(
                FaultKind::ImageUnacceptable,
                format!(
                    "the content is of the disk format {label}, and Glance has it as {said}; \
                     upload it with `--disk-format {label}`"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Refuses an image that the operator does not let the kernel read.
    pub(super) fn allow_kernel(&self, content: &Verified, file_system: FileSystem) -> Result<()> {
        let allowed = self.config.kernel_mounts;
        let read = match allowed {
            KernelMounts::All => return Ok(()),
            KernelMounts::Signed if self.request.verification.is_some() => return Ok(()),
            KernelMounts::Public if self.is_public(content)? => return Ok(()),
            KernelMounts::None => "none",
            KernelMounts::Signed => "only images whose signature Nova verified",
            KernelMounts::Public => "only images that Glance shows to be public",
        };
        Err(Fault::new(
            FaultKind::ImageUnacceptable,
            format!(
                "the content is {}; with images.kernel_mounts = \"{}\" the host's kernel reads \
                 {read}: change that, or give the image with ext4 or as a tar archive",
                Content::FileSystem(file_system),
                allowed.name()
            ),
        ))
    }

    /// Whether Glance itself says that everybody may have this content. Only
    /// administrators can make an image public.
    fn is_public(&self, content: &Verified) -> Result<bool> {
        let Some((described, own)) = self.described()? else { return Ok(false) };
        // What the request's own endpoint gave is what that endpoint describes.
        let same = !own
            || described.os_hash_algo.as_deref() == Some(content.hash.algorithm().name())
                && described.os_hash_value.as_deref() == Some(content.hash.hex());
        Ok(described.visibility == "public" && same)
    }

    /// What Glance says about the image, and whether the service's own
    /// credentials asked, of which nothing comes from the request. `None`
    /// without any way to ask.
    fn described(&self) -> Result<Option<(Described, bool)>> {
        let own = self.config.keystone.is_some();
        let access = match (own, source::access(&self.request.source)) {
            (true, _) => {
                Access { section: "source", endpoint: None, token: None, service_token: None }
            }
            (false, Some(access)) => access,
            (false, None) => return Ok(None),
        };
        describe(access, self.id, self.config).map(|described| Some((described, own)))
    }
}

# shellcheck shell=bash
# Sourced by DevStack as `plugin.sh MODE [PHASE]`: which function of lib/berth runs when.
# What Nova's own steps call is in lib/nova_plugins/hypervisor-berth.

# shellcheck source=lib/berth
source "$BERTH_DIR/devstack/lib/berth"

case "$1 ${2:-}" in
    "stack pre-install")
        if is_service_enabled berth; then
            echo_summary "Installing what berth needs"
            install_berth_packages
        fi
        install_berth_image_tools
        ;;
    "stack install")
        if is_service_enabled berth; then
            echo_summary "Installing berth"
            install_berth
            install_berth_driver
            configure_berth
        fi
        ;;
    "stack post-config")
        configure_berth_datapath
        ;;
    "stack extra")
        if is_service_enabled g-api; then
            echo_summary "Uploading berth's images"
            upload_berth_images
        fi
        if is_service_enabled n-api; then
            create_berth_flavors
        fi
        ;;
    "stack test-config")
        if is_service_enabled tempest; then
            configure_berth_tempest
        fi
        ;;
    "unstack ")
        # As DevStack does for other hypervisors' instances: nothing of this cloud runs on.
        destroy_berth_instances
        ;;
    "clean ")
        cleanup_berth
        ;;
esac

//! What containerd asks of every snapshotter, scenario by scenario: the 21 of its own suite
//! (core/snapshots/testsuite), each run on our socket and through a real containerd.

mod keeping;
mod layering;

use super::plugin::Plugin;

/// One scenario as two tests.
macro_rules! scenarios {
    ($($module:ident::$scenario:ident,)*) => {
        mod direct {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    $module::$scenario(&Plugin::direct().await).await;
                }
            )*
        }

        mod behind_containerd {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    let Some(mut plugin) = Plugin::through_containerd().await else { return };
                    $module::$scenario(&plugin).await;
                    plugin.containerd.take().unwrap().stop().await;
                }
            )*
        }
    };
}

scenarios! {
    keeping::a_layer_is_written_committed_and_built_upon,
    keeping::an_active_snapshot_says_so,
    keeping::a_committed_snapshot_says_so,
    keeping::parents_lead_to_the_bottom,
    keeping::a_key_is_used_once,
    keeping::only_labels_can_be_updated,
    keeping::a_removed_key_is_free_again,
    keeping::a_listing_shows_what_its_filters_let_through,
    keeping::what_is_built_upon_stays,
    keeping::a_stat_works_while_listing,
    keeping::work_goes_on_after_a_client_has_left,
    layering::a_file_is_updated_in_an_upper_layer,
    layering::a_directory_is_removed_and_made_anew,
    layering::owners_change_in_an_upper_layer,
    layering::owners_and_modes_of_directories_survive_a_commit,
    layering::what_a_layer_deletes_is_gone_above,
    layering::a_file_moves_out_of_a_lower_layer,
    layering::files_of_a_lower_layer_are_renamed,
    layering::a_view_cannot_be_written,
    layering::the_root_of_a_container_has_mode_755,
    layering::a_hundred_and_twenty_eight_layers_are_mounted,
}

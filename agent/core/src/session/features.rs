//! What this agent understands of an assignment beyond what every agent does. Its hello says so, and a controller offers it
//! nothing that needs more: what an agent does not know of an assignment it does not see.

use flowtilla_proto::wire::session::Feature;

/// All that [`super::Assignment`] reads and this agent does.
pub const FEATURES: [Feature; 8] = [
    Feature::RuleContainers,
    Feature::RuleImages,
    Feature::RuleNamespaces,
    Feature::RulePodLabels,
    Feature::ContainerSockets,
    Feature::NestedJson,
    Feature::ShortSourceIds,
    Feature::Drain,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_has_every_feature_of_the_api_it_was_built_with() {
        let all = (1..=i32::from(u8::MAX)).filter_map(|number| Feature::try_from(number).ok());
        assert_eq!(all.collect::<Vec<Feature>>(), FEATURES);
    }
}

"""The node provider of cluster.yaml: a spot instance, or one on demand where there is no spot capacity.

`PYTHONPATH=cluster/aws ray up cluster/aws/cluster.yaml` uses it on your machine, and Ray's autoscaler on the head. It
costs nothing itself; an instance on demand costs two to three times as much as on spot.

Ray alone asks for spot again and again and never for an instance on demand: its own fallback between node types hears
of nodes that never join, and not of a launch that AWS refuses.
"""

from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

NO_CAPACITY = frozenset({"InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow"})
"""Error codes of RunInstances by which AWS says that there is no spot instance to be had, and not that the request is
wrong: an on-demand instance may be there."""


class SpotOrOnDemand(AWSNodeProvider):
    """Ray's provider for AWS. It asks once more without `InstanceMarketOptions` when all zones have refused spot."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launch instances: of the market that `node_config` names, else on demand.

        Args:
            node_config: What RunInstances is asked for, with `SubnetIds`, which are tried in turn.
            tags: Of the instances.
            count: How many are wanted. Fewer may come.

        Returns:
            The instances by their id.

        Raises:
            NodeLaunchException: AWS refused for another reason than capacity, or on demand, too.
        """
        try:
            return super().create_node(node_config, tags, count)
        except NodeLaunchException as error:
            if error.category not in NO_CAPACITY or "InstanceMarketOptions" not in node_config:
                raise
        on_demand = {key: value for key, value in node_config.items() if key != "InstanceMarketOptions"}
        return super().create_node(on_demand, tags, count)

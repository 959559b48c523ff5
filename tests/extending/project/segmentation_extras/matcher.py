import torch

from mask2former.modeling import MATCHER_REGISTRY, HungarianMatcher


@MATCHER_REGISTRY.register()
class GreedyMatcher(HungarianMatcher):
    """Targets choose the cheapest query that is left, one after the other."""

    @torch.no_grad()
    def __call__(self, predictions, targets):
        tables = []
        for image, target in enumerate(targets):
            costs = self.costs(predictions, image, target).cpu()  # (L, Q, N)
            layers, (num_queries, num_targets) = torch.arange(len(costs)), costs.shape[1:]
            table = torch.full((len(costs), num_targets), -1)  # without a query
            for number in range(min(num_queries, num_targets)):
                table[:, number] = costs[:, :, number].argmin(1)
                costs[layers, table[:, number]] = float("inf")
            tables.append(table)
        return torch.cat(tables, dim=1)  # (L, M): targets of all images

"""The start of tokenizer training that needs no gradient: linear weights and codewords in closed form or by k-means.

1. globals: principal components of the thumbnails, dealt out to the globals so that each carries about the bits of its
   code (reverse water-filling), k-means at each place: a product quantizer (Jégou, Douze, Schmid 2011);
2. patch codes: k-means of the residuals in their principal components (Linde, Buzo, Gray 1980);
3. neighbours' weights: ridge regression of what is left, over masks of all keep rates;
4. in turn: codes searched by synthesis, a Gauss-Newton step of every codeword, the regression again.

Sums over batches of images are kept in float64 by each process and added in the order of the processes: the result
depends on their number, and not on their timing.

Letters: M images or vectors of this process, N patches on a grid of side S, P values of a patch, K globals of D
dimensions, C dimensions of a patch's code vector, V codewords, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.quantizer import VQ, nearest
from tatok_pipe.tokenizer.search import Neighbourhood, pad_errors, search_codes, windows
from tatok_pipe.tokenizer.training_options import PATCHED_SHARE

NUM_ROUNDS = 4  # of search, codewords and regression
_KMEANS_ROUNDS = 12
_KMEANS_PER_CODE = 30  # vectors a codeword and round, over all processes
_FULL_SHARE = 0.4  # of the images of the regression: those that keep all patches
_LOWEST_KEEP_RATE = 0.05
_RIDGE = 1e-5  # of the mean diagonal
_SCARCE_RIDGE = 0.3  # the same, times features a patch over
_ENOUGH_SHARE = 0.01  # features a patch up to which nothing is added
_CODEWORD_STEP = 0.6
_CODEWORD_PRIOR = 4  # uses that a codeword's present place counts for
_BATCH_IMAGES = 50
_TOLD_CROPS = 1_000


@torch.no_grad()
def fit_closed_form(
    model: TaTok,
    batches: Iterator[Tensor],
    *,
    num_crops: int,
    seed: int,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Set the linear codec and the codebooks of `model` from this process's `batches` of images (B, 3, H, W) in [0, 1],
    `num_crops` of them. `tell` hears of each part that is done. Where there are fewer different vectors than codewords,
    some codewords are alike, and the first of them is used."""
    _ClosedForm(model, batches, num_crops=num_crops, seed=seed, tell=tell).fit()


class _ClosedForm:
    def __init__(
        self,
        model: TaTok,
        batches: Iterator[Tensor],
        *,
        num_crops: int,
        seed: int,
        tell: Callable[[str], None],
    ) -> None:
        assert isinstance(model.global_quantizer, VQ) and isinstance(model.patch_quantizer, VQ)
        self.model, self.linear = model, model.linear
        self.global_codebook, self.patch_codebook = (
            model.global_quantizer.codebook,
            model.patch_quantizer.codebook,
        )
        self.num_patches, self.side = model.config.num_patches, model.config.grid_side
        self.device = self.patch_codebook.device
        self.tell = tell
        self.rank = dist.get_rank() if _is_distributed() else 0
        # The same on all processes, and one of each process's own.
        self.shared = torch.Generator().manual_seed(seed)
        self.own = torch.Generator().manual_seed(seed + 1 + self.rank)
        self._read(batches, num_crops)

    def _read(self, batches: Iterator[Tensor], num_crops: int) -> None:
        thumbnails: list[Tensor] = []
        crops: list[Tensor] = []
        read = 0
        for images in batches:
            images = images[: num_crops - read]
            thumbnails.append(self.linear.thumbnails(images))
            if read < max(1, num_crops // PATCHED_SHARE):
                crops.append((images * 255).round().byte().cpu())
            before, read = read, read + len(images)
            if read >= num_crops:
                break
            if read // _TOLD_CROPS > before // _TOLD_CROPS:
                self.tell(f"{read} of {num_crops} crops read")
        self.thumbnails = torch.cat(thumbnails)
        self.crops = torch.cat(crops)[: max(1, num_crops // PATCHED_SHARE)]

    def fit(self) -> None:
        self._fit_globals()
        self.tell(f"globals, from {len(self.thumbnails)} thumbnails a worker")
        self._fit_patches()
        self.tell(f"codewords of patches, from {len(self.crops)} crops a worker")
        codes = [self.model.encode(images, search_passes=0).patches.codes for images in self._images()]
        self.linear.neighbours.zero_()
        for number in range(NUM_ROUNDS):
            if number:
                codes = self._search(codes, num_passes=2 if number == 1 else 1)
            if number > 1:
                self._move_codewords(codes)
            self._fit_neighbours(codes)
            self.tell(f"round {number + 1} of {NUM_ROUNDS} of search, codewords and regression")

    def _images(self) -> Iterator[Tensor]:
        for crops in self.crops.split(_BATCH_IMAGES):
            yield crops.to(self.device).float() / 255

    # ---- globals

    def _fit_globals(self) -> None:
        places, _, dim = self.global_codebook.shape
        mean, values, vectors = principal_components(self.thumbnails)
        self.linear.mean.copy_(mean)
        if not places:
            return
        order = deal_components(
            values[: places * dim], places=places, dim=dim, codes=self.global_codebook.shape[1]
        )
        self.linear.global_basis.copy_(vectors[:, order])
        latents = ((self.thumbnails - self.linear.mean) @ self.linear.global_basis).view(-1, places, dim)
        for place in range(places):
            self.global_codebook[place] = self._kmeans(
                latents[:, place].contiguous(), self.global_codebook.shape[1]
            )

    # ---- patches

    def _fit_patches(self) -> None:
        linear = self.linear
        found = [
            self.model.global_quantizer.quantize(linear.global_latents(images)) for images in self._images()
        ]
        pictures = [linear.patchify(linear.render(each.vectors)) for each in found]
        residuals = torch.cat(
            [
                (linear.patchify(images) - picture).flatten(0, 1)
                for images, picture in zip(self._images(), pictures, strict=True)
            ]
        )
        _, _, vectors = principal_components(residuals, centred=False)
        linear.patch_basis.copy_(vectors[:, : linear.patch_basis.shape[1]])
        _, _, vectors = principal_components(torch.cat(pictures).flatten(0, 1) - 0.5, centred=False)
        linear.picture_basis.copy_(vectors[:, : linear.picture_basis.shape[1]])
        self.patch_codebook[0] = self._kmeans(residuals @ linear.patch_basis, self.patch_codebook.shape[1])

    def _parts(self, codes: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Of each batch: residuals (M, N, P), R as patches (M, N, P), codes (M, N) and their vectors (M, N, C)."""
        for images, each in zip(self._images(), codes, strict=True):
            found = self.model.global_quantizer.quantize(self.linear.global_latents(images))
            picture = self.linear.patchify(self.linear.render(found.vectors))
            yield self.linear.patchify(images) - picture, picture, each, self.patch_codebook[0][each]

    def _search(self, codes: list[Tensor], *, num_passes: int) -> list[Tensor]:
        neighbourhood = self._neighbourhood()
        found = []
        for residual, picture, each, vectors in self._parts(codes):
            errors = residual - self.linear.all_residuals(vectors, picture)
            padded = pad_errors(errors, neighbourhood, self.side)
            found.append(search_codes(each, padded, neighbourhood, num_passes=num_passes))
        return found

    def _neighbourhood(self) -> Neighbourhood:
        return Neighbourhood(self.linear.jacobian(), self.patch_codebook[0])

    def _move_codewords(self, codes: list[Tensor]) -> None:
        """A Gauss-Newton step: each codeword goes where the errors of all patches that its uses move ask for."""
        neighbourhood = self._neighbourhood()
        count, dim = self.patch_codebook.shape[1:]
        asked = torch.zeros(count, dim, dtype=torch.float64, device=self.device)
        uses = torch.zeros(count, dtype=torch.float64, device=self.device)
        for residual, picture, each, vectors in self._parts(codes):
            errors = residual - self.linear.all_residuals(vectors, picture)
            around = windows(pad_errors(errors, neighbourhood, self.side), 0, 0, 1)
            pulls = neighbourhood.pull(around.flatten(3)).flatten(0, 2)  # (M·N, C)
            asked += sums_by_code(pulls, each.flatten(), count)
            uses += torch.bincount(each.flatten(), minlength=count)
        asked, uses = total(asked), total(uses)
        steps = torch.linalg.solve(
            neighbourhood.gram.double(), (asked / (uses[:, None] + _CODEWORD_PRIOR)).t()
        ).t()
        self.patch_codebook[0] += (_CODEWORD_STEP * steps).float()

    def _fit_neighbours(self, codes: list[Tensor]) -> None:
        """Ridge regression of what the patches' own codewords leave, of kept and of dropped patches."""
        _, num_features, values = self.linear.neighbours.shape
        squares = torch.zeros(2, num_features, num_features, dtype=torch.float64, device=self.device)
        products = torch.zeros(2, num_features, values, dtype=torch.float64, device=self.device)
        for residual, picture, _, vectors in self._parts(codes):
            keep = self._draw_masks(residual, vectors)
            features = self.linear.features(vectors, picture, keep)
            rest = residual - self.linear.own(vectors, keep)
            for kind in (0, 1):
                rows = keep == bool(kind)
                inputs, targets = features[rows], rest[rows]
                squares[kind] += (inputs.t() @ inputs).double()
                products[kind] += (inputs.t() @ targets).double()
        squares, products = total(squares), total(products)
        eye = torch.eye(num_features, dtype=torch.float64, device=self.device)
        for kind in (0, 1):
            # The last diagonal entry counts the patches. Few of them need more than numerical safety.
            scarcity = (num_features / squares[kind, -1, -1].clamp_min(1.0) - _ENOUGH_SHARE).clamp_min(0.0)
            strength = (_RIDGE + _SCARCE_RIDGE * scarcity) * squares[kind].diagonal().mean().clamp_min(1.0)
            self.linear.neighbours[kind] = torch.linalg.solve(
                squares[kind] + strength * eye, products[kind]
            ).float()

    def _draw_masks(self, residual: Tensor, vectors: Tensor) -> Tensor:
        """Keep masks (M, N): a share of the images keep all, the others what gains most, at any rate."""
        left = residual - vectors @ self.linear.patch_basis.t()
        gain = residual.square().mean(dim=2) - left.square().mean(dim=2)
        num_images = len(gain)
        rate = torch.rand(num_images, generator=self.own) * (1 - _LOWEST_KEEP_RATE) + _LOWEST_KEEP_RATE
        kind = (torch.arange(num_images) + torch.rand(num_images, generator=self.own)) / num_images
        rate[kind < _FULL_SHARE] = 1.0
        noise = torch.rand(gain.shape, generator=self.own) + 0.5
        rank = (gain * noise.to(gain.device)).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return rank < (rate * self.num_patches).round()[:, None].to(gain.device)

    # ---- k-means over all processes

    def _kmeans(self, vectors: Tensor, count: int) -> Tensor:
        """Codewords (count, C) of this process's vectors (M, C) and those of the others."""
        codebook = self._pick(vectors, count)
        per_round = -(-_KMEANS_PER_CODE * count // (dist.get_world_size() if _is_distributed() else 1))
        for _ in range(_KMEANS_ROUNDS):
            some = vectors
            if len(vectors) > per_round:
                some = vectors[
                    torch.randperm(len(vectors), generator=self.own)[:per_round].to(vectors.device)
                ]
            codes = nearest(some, codebook)
            sums = total(sums_by_code(some, codes, count))
            uses = total(torch.bincount(codes, minlength=count).double())[:, None]
            spare = self._pick(vectors, count)
            codebook = torch.where(uses > 0, (sums / uses.clamp_min(1)).float(), spare)
        return codebook

    def _pick(self, vectors: Tensor, count: int) -> Tensor:
        """`count` of the vectors of all processes by chance, each at most once where there are enough."""
        if _is_distributed():
            share = -(-count // dist.get_world_size())
            mine = vectors[self._draw(len(vectors), share)]
            vectors = torch.cat(gathered(mine))
        return vectors[self._draw(len(vectors), count, self.shared)]

    def _draw(self, size: int, count: int, generator: torch.Generator | None = None) -> Tensor:
        order = torch.randperm(size, generator=generator or self.own)
        return order.repeat(-(-count // size))[:count].to(self.device)


def principal_components(vectors: Tensor, *, centred: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Of vectors (M, X) of all processes: mean (X,) float32 (0 unless `centred`), variances (X,) in descending order
    and directions (X, X), in columns, whose largest entry is positive, so that no library decides their signs."""
    size = vectors.shape[1]
    mean = torch.zeros(size, dtype=torch.float64, device=vectors.device)
    number = total(mean.new_tensor(len(vectors)))
    if centred:
        mean = total(vectors.double().sum(0)) / number
    square = mean.new_zeros(size, size)
    for part in vectors.split(16_384):
        moved = part - mean.float()
        square += (moved.t() @ moved).double()
    values, directions = torch.linalg.eigh(total(square) / number)
    values, directions = values.flip(0), directions.flip(1)
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return mean.float(), values, (directions * largest.sign()).float()


def deal_components(values: Tensor, *, places: int, dim: int, codes: int) -> list[int]:
    """Which principal components each of `places` globals gets, `dim` each, one place after the other. Variances
    `values` (places·dim,) in descending order have bits by reverse water-filling; each goes to the place with the most
    bits of its code left."""
    budget = torch.log2(torch.tensor(float(codes))).item()

    def bits(level: float) -> Tensor:
        return 0.5 * torch.log2((values.clamp_min(1e-12) / level).clamp_min(1))

    low, high = 1e-12, max(1.0, float(values[0]) if len(values) else 1.0)
    for _ in range(80):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if float(bits(middle).sum()) > budget * places else (low, middle)
    wanted = bits(low).tolist()
    groups: list[list[int]] = [[] for _ in range(places)]
    room = [budget] * places
    for component in range(places * dim):
        open_places = [place for place in range(places) if len(groups[place]) < dim]
        place = max(open_places, key=lambda each: (room[each], -each))
        groups[place].append(component)
        room[place] -= wanted[component]
    return [component for group in groups for component in group]


def sums_by_code(vectors: Tensor, codes: Tensor, count: int) -> Tensor:
    """Sums of vectors (M, C) by their code (M,), (count, C) float64. On GPUs `index_add_` would add in any order."""
    order = codes.argsort(stable=True)
    sizes = torch.bincount(codes, minlength=count)
    return torch.segment_reduce(vectors.double()[order], "sum", lengths=sizes, axis=0, initial=0)


def total(value: Tensor) -> Tensor:
    """The sum over all processes, in their order."""
    if not _is_distributed():
        return value
    first, *others = gathered(value)
    for other in others:
        first = first + other
    return first


def gathered(value: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return parts


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()

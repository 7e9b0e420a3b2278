"""Geometry: do the directions lie as human ratings of the words do?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emosteer.bank import Bank

from ..circumplex import circumplex, components, correlation
from .found import Found, Table
from .pictures import figure
from .setting import Setting

BARS = {"valence": 0.80, "arousal": 0.65}
CLUSTERS = 10


def study(setting: Setting) -> Found:
    """PCA by layer against human ratings, with a permutation test and directions of shuffled labels."""
    bank, layers = setting.bank, setting.bank.layers
    curve = [circumplex(bank, layer, ratings=setting.ratings) for layer in layers]
    late = [one for one in curve if one.layer >= (layers[-1] + 1) / 2] or curve
    best = max(late, key=lambda one: one.valence_r / BARS["valence"] + one.arousal_r / BARS["arousal"])
    draws = 500 if setting.quick else 5000
    p_value = permutation_test(
        bank, best.valence, best.arousal, [one.layer for one in late], late, draws, setting.seed
    )
    shuffled = [shuffled_labels(setting, best.layer, k) for k in range(3 if setting.quick else 10)]
    halves = split_halves(setting, best.layer)
    words = vocabulary(setting, best)
    similarity = between_layers(bank)
    clusters = k_means(bank, best.layer, setting.seed)

    found = Found(
        "geometry",
        "Do the directions lie as people rate the words?",
        f"Principal components of the {len(bank)} vectors at each layer, correlated with human valence "
        f"({best.rated[0]} words) and arousal ({best.rated[1]} words). The best layer is picked in the second half of "
        f"the depth; the permutation test picks it anew for each of {draws} shufflings of the ratings.",
    )
    for name in BARS:
        r = getattr(best, f"{name}_r")
        component = getattr(best, f"{name}_component")
        reached = "reaches" if r >= BARS[name] else "misses"
        found.findings.append(
            f"Block {best.layer}: {name} r = {r:.2f} on PC{component}, which {reached} the bar of {BARS[name]:.2f}; "
            f"p = {p_value[name]:.4f} by permutation."
        )
    for name, k in (("valence", 0), ("arousal", 1)):
        values = [pair[k] for pair in shuffled]
        found.findings.append(
            f"Stories with shuffled labels, {len(shuffled)} times at block {best.layer}: {name} r = "
            f"{sum(values) / len(values):.2f} on average, {max(values):.2f} at most."
        )
    found.findings.append(
        f"The stories' vocabulary alone (tf-idf, no model): valence r = {words[0]:.2f}, arousal r = {words[1]:.2f}; "
        f"what a layer adds lies above that."
    )
    if halves is not None:
        found.findings.append(
            f"From two halves of the topics: the same emotion's directions have cosine {halves['same']:.2f}, different "
            f"emotions' {halves['other']:.2f}; their similarity matrices correlate with r = {halves['rsa']:.2f}."
        )
    found.findings.append(
        f"PC1 to PC3 at block {best.layer} explain "
        + ", ".join(f"{float(share):.0%}" for share in best.explained[:3])
        + " of the variance between emotions."
    )
    found.pictures = {
        "circumplex.png": best.plot(),
        "layers.png": _curve(curve, best.layer),
        "rsa.png": _matrix(similarity, layers),
    }
    found.tables = [
        Table(
            "by layer",
            ("block", "valence r", "on", "arousal r", "on", "PC1", "PC2", "PC3"),
            [
                (
                    one.layer,
                    f"{one.valence_r:.2f}",
                    f"PC{one.valence_component}",
                    f"{one.arousal_r:.2f}",
                    f"PC{one.arousal_component}",
                    *(f"{float(share):.0%}" for share in one.explained[:3]),
                )
                for one in curve
            ],
        ),
        Table(
            f"k-means of the directions at block {best.layer}",
            ("size", "emotions, those nearest to the middle first"),
            [(len(group), ", ".join(group)) for group in clusters],
        ),
    ]
    found.numbers = {
        "best_layer": best.layer,
        "valence_r": best.valence_r,
        "arousal_r": best.arousal_r,
        "bars": BARS,
        "p_value": p_value,
        "shuffled_labels": [{"valence_r": v, "arousal_r": a} for v, a in shuffled],
        "vocabulary": {"valence_r": words[0], "arousal_r": words[1]},
        "split_halves": halves,
        "by_layer": [
            {
                "layer": one.layer,
                "valence_r": one.valence_r,
                "valence_component": one.valence_component,
                "arousal_r": one.arousal_r,
                "arousal_component": one.arousal_component,
                "explained": [float(share) for share in one.explained[:10]],
            }
            for one in curve
        ],
        "rsa_between_layers": similarity.tolist(),
        "clusters": clusters,
    }
    return found


def permutation_test(
    bank: Bank, valence: Tensor, arousal: Tensor, layers: list[int], curve: list[Any], draws: int, seed: int
) -> dict[str, float]:
    """The p of the best |r| over layers and components, if ratings were dealt to the rated words at random."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.stack([components(bank, layer)[0] for layer in layers])  # [L, K, 3]
    found = {}
    for name, rating, columns in (("valence", valence, (0, 1)), ("arousal", arousal, (1, 2))):
        rated = torch.isfinite(rating)
        # as many numbers as words, standardised: correlations become products
        z = scores[:, rated][..., list(columns)]
        z = (z - z.mean(1, keepdim=True)) / z.std(1, correction=0, keepdim=True)
        r = rating[rated]
        r = (r - r.mean()) / r.std(correction=0)
        order = torch.stack([torch.randperm(len(r), generator=generator) for _ in range(draws)])
        null = torch.einsum("pk,lkc->plc", r[order], z).abs().amax((1, 2)) / len(r)
        reached = float(torch.einsum("k,lkc->lc", r, z).abs().amax() / len(r))
        found[name] = float((null >= reached - 1e-12).sum() + 1) / (draws + 1)
    return found


def shuffled_labels(setting: Setting, layer: int, k: int) -> tuple[float, float]:
    """`(valence r, arousal r)` of directions from the same stories with the emotions dealt at random in each topic."""
    generator = torch.Generator().manual_seed(setting.seed + k)
    label_of = {}
    for topic in dict.fromkeys(story.topic for story in setting.stories):
        here = [i for i, story in enumerate(setting.stories) if story.topic == topic]
        dealt = torch.randperm(len(here), generator=generator).tolist()
        label_of.update({str(i): setting.stories[here[j]].emotion for i, j in zip(here, dealt)})
    one = circumplex(_at(setting, label_of, layer), layer, ratings=setting.ratings)
    return one.valence_r, one.arousal_r


def vocabulary(setting: Setting, best: Any) -> tuple[float, float]:
    """`(valence r, arousal r)` of the emotions' mean word weights, without any model."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    weights = TfidfVectorizer(sublinear_tf=True).fit_transform(story.text for story in setting.stories)
    emotions = [story.emotion for story in setting.stories]
    rows = torch.from_numpy(weights.toarray())
    means = torch.stack(
        [
            rows[[i for i, emotion in enumerate(emotions) if emotion == name]].mean(0)
            for name in setting.bank.names
        ]
    )
    alone = Bank(setting.bank.names, {0: means - means.mean(0)})
    valence = dict(zip(setting.bank.names, best.valence.tolist()))
    known = {n: (v, a) for n, v, a in zip(setting.bank.names, valence.values(), best.arousal.tolist())}
    one = circumplex(alone, 0, ratings=known, valence=valence)
    return one.valence_r, one.arousal_r


def split_halves(setting: Setting, layer: int) -> dict[str, float] | None:
    """How alike the directions of two halves of the topics are; None where there is one topic only."""
    topics = list(dict.fromkeys(story.topic for story in setting.stories))
    if len(topics) < 2:
        return None
    sides = [
        {str(i): story.emotion for i, story in enumerate(setting.stories) if story.topic in chosen}
        for chosen in (topics[0::2], topics[1::2])
    ]
    common = sorted(set(sides[0].values()) & set(sides[1].values()))
    if len(common) < 3:
        return None
    unit = [
        _at(setting, {i: e for i, e in side.items() if e in set(common)}, layer)
        .subset(common)
        .directions[layer]
        .double()
        for side in sides
    ]
    cosine = unit[0] @ unit[1].T
    off = ~torch.eye(len(common), dtype=torch.bool)
    return {
        "same": float(cosine.diagonal().mean()),
        "other": float(cosine[off].mean()),
        "rsa": correlation((unit[0] @ unit[0].T)[off], (unit[1] @ unit[1].T)[off]),
    }


def _at(setting: Setting, label_of: dict[str, str], layer: int) -> Bank:
    collected = setting.collected
    one = type(collected)(collected.names, {layer: collected.moments[layer]}, collected.provenance)
    return one.regrouped(label_of).bank()


def between_layers(bank: Bank) -> Tensor:
    """float64 `[L, L]`: correlation of the layers' similarity matrices (Kriegeskorte et al., 2008)."""
    k = len(bank)
    upper = torch.triu_indices(k, k, 1)
    rows = torch.stack([(d.double() @ d.double().T)[upper[0], upper[1]] for d in bank.directions.values()])
    return torch.corrcoef(rows) if len(rows) > 1 else torch.ones(1, 1, dtype=torch.float64)


def k_means(bank: Bank, layer: int, seed: int) -> list[list[str]]:
    """Emotions by cluster of their unit directions, the largest cluster first."""
    from sklearn.cluster import KMeans

    unit = bank.directions[layer].double().numpy()
    fitted = KMeans(min(CLUSTERS, len(bank)), n_init=10, random_state=seed).fit(unit)
    distance = fitted.transform(unit)
    groups: dict[int, list[tuple[float, str]]] = {}
    for k, label in enumerate(fitted.labels_):
        groups.setdefault(int(label), []).append((float(distance[k, label]), bank.names[k]))
    return sorted(([name for _, name in sorted(group)] for group in groups.values()), key=len, reverse=True)


def _curve(curve: list[Any], best: int) -> Any:
    drawn, axis = figure((8, 4))
    layers = [one.layer for one in curve]
    for name, colour in (("valence", "C2"), ("arousal", "C1")):
        axis.plot(
            layers,
            [getattr(one, f"{name}_r") for one in curve],
            color=colour,
            marker="o",
            markersize=3,
            label=name,
        )
        axis.axhline(BARS[name], color=colour, linestyle=":", linewidth=0.8)
    axis.axvline(best, color="0.6", linewidth=0.8)
    axis.set(xlabel="block", ylabel="|r| with human ratings", ylim=(0, 1))
    axis.legend()
    return drawn


def _matrix(similarity: Tensor, layers: tuple[int, ...]) -> Any:
    drawn, axis = figure((5.5, 4.6))
    extent = (layers[0] - 0.5, layers[-1] + 0.5, layers[-1] + 0.5, layers[0] - 0.5)
    shown = axis.imshow(similarity, vmin=0, vmax=1, cmap="viridis", extent=extent)
    drawn.colorbar(shown, ax=axis, label="correlation of the similarity matrices")
    axis.set(xlabel="block", ylabel="block")
    return drawn

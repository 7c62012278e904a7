"""Every formula of X-STA in plain NumPy, in float64, as an independent reference for the tests.

Written from section 3 of the paper and from the method page alone. Batches are walked row by row and sequences are
sliced to their real tokens, so nothing here shares the library's masking. There is no dropout and no gradient.

Notation: B batch, N_S and N_T source and target tokens (N for either), H hidden size, A heads.
Masks are (B, N), 1 on real tokens. Weights are in the layout of torch.nn.Linear: y = x @ W.T + b.
Entropies and losses are in nats. "Release" means the authors' published code.
"""

import math

import numpy as np

Array = np.ndarray


# Building blocks


def softmax(scores: Array, axis: int) -> Array:
    """Section 3.1: exp(x) / sum exp(x) along one axis. Shape kept."""
    shifted = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """y = x W^T + b. x (..., I), weight (O, I), bias (O,), result (..., O)."""
    return x @ weight.T + bias


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Layer normalisation over the last axis, biased variance. x (..., H), weight and bias (H,)."""
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def gelu(x: Array) -> Array:
    """Exact GELU: x * (1 + erf(x / sqrt 2)) / 2. Shape kept."""
    return 0.5 * x * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2.0)))


def real(mask_row: Array) -> Array:
    """Positions of one row's real tokens. mask_row (N,), result (n,) integers."""
    return np.flatnonzero(mask_row)


def softmax_over_real(logits: Array, mask: Array) -> Array:
    """Section 3.1: softmax over each row's real tokens; 0 on padding. logits (B, N, C), mask (B, N)."""
    result = np.zeros_like(logits, dtype=np.float64)
    for row in range(len(logits)):
        tokens = real(mask[row])
        result[row, tokens] = softmax(logits[row, tokens], axis=0)
    return result


def entropy(probabilities: Array, axis: int) -> Array:
    """-sum p log p in nats along one axis, with 0 log 0 = 0. The axis is dropped."""
    safe = np.where(probabilities > 0, probabilities, 1.0)
    return -(probabilities * np.log(safe)).sum(axis=axis)


def attention_probabilities(queries: Array, keys: Array, key_mask: Array, heads: int) -> Array:
    """softmax(q k^T / sqrt(H / A)) over real keys; 0 on padded keys; every query row is computed.

    queries (B, N_T, H) and keys (B, N_S, H) are already projected, key_mask (B, N_S), result (B, A, N_T, N_S).
    """
    batch, n_t, hidden = queries.shape
    size = hidden // heads
    result = np.zeros((batch, heads, n_t, keys.shape[1]))
    for row in range(batch):
        tokens = real(key_mask[row])
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = queries[row, :, part] @ keys[row, tokens, part].T / math.sqrt(size)  # (N_T, n_S)
            result[row, head][:, tokens] = softmax(scores, axis=1)
    return result


def multi_head_attention(
    queries: Array, keys: Array, values_from: Array, key_mask: Array, weights: dict[str, Array], heads: int
) -> tuple[Array, Array]:
    """Section 3.2, MHA(q, k, v) before the output projection.

    queries (B, N_T, H), keys and values_from (B, N_S, H), key_mask (B, N_S).
    weights: query, key and value, each with .weight (H, H) and .bias (H,).
    Returns the context (B, N_T, H) and the probabilities (B, A, N_T, N_S).
    """
    q = linear(queries, weights["query.weight"], weights["query.bias"])
    k = linear(keys, weights["key.weight"], weights["key.bias"])
    v = linear(values_from, weights["value.weight"], weights["value.bias"])
    probabilities = attention_probabilities(q, k, key_mask, heads)
    context = np.zeros_like(q)
    size = q.shape[2] // heads
    for row in range(len(q)):
        tokens = real(key_mask[row])
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            context[row, :, part] = probabilities[row, head][:, tokens] @ v[row, tokens, part]
    return context, probabilities


# Section 3.2: Gradient-Disentangled Knowledge Sharing


def corrected_source(h_s: Array, h_t: Array, m_s: Array, m_t: Array, weight: Array, bias: Array) -> Array:
    """Section 3.2, first equation, S not T: h~_S = h_S + f(h_S, h_T), (B, N_S, H), without dropout.

    f reads source and target vectors of the same position, in that order. Padding, and what the target lacks, is zero.
    The result has the source's length, so a longer target is cut. h_S itself is left as it is on padding.
    h_s (B, N_S, H), h_t (B, N_T, H), weight (H, 2H), bias (H,).
    """
    batch, n_s, hidden = h_s.shape
    both = np.zeros((batch, n_s, 2 * hidden))
    for row in range(batch):
        for i in range(n_s):
            if m_s[row, i]:
                both[row, i, :hidden] = h_s[row, i]
            if i < h_t.shape[1] and m_t[row, i]:
                both[row, i, hidden:] = h_t[row, i]
    return h_s + linear(both, weight, bias)


def gdks(
    h_t: Array,
    h_s: Array,
    m_t: Array,
    m_s: Array,
    weights: dict[str, Array],
    heads: int,
    correction_weight: Array | None,
    correction_bias: Array | None,
    w: float,
    b: float,
    lambda_0: float = 0.3,
    release_weighting: bool = False,
    correct: bool = True,
) -> tuple[Array, float, Array]:
    """Section 3.2: (1 - lambda) MHA(h_T, h~_S, h~_S) + lambda MHA(h_T, h_T, h_T), lambda = w lambda_0 + b.

    release_weighting: the release swaps lambda and 1 - lambda. correct=False: "w/o GDKS", h~_S = h_S.
    h_t (B, N_T, H), h_s (B, N_S, H), correction_weight (H, 2H), correction_bias (H,).
    Returns mix (B, N_T, H) before the output projection, lambda, and the cross probabilities (B, A, N_T, N_S).
    """
    source = h_s
    if correct:
        source = corrected_source(h_s, h_t, m_s, m_t, correction_weight, correction_bias)
    cross, cross_probabilities = multi_head_attention(h_t, source, source, m_s, weights, heads)
    own, _ = multi_head_attention(h_t, h_t, h_t, m_t, weights, heads)
    lam = w * lambda_0 + b
    share = lam if release_weighting else 1.0 - lam
    mix = share * cross + (1.0 - share) * own
    return mix, lam, cross_probabilities


# Section 3.3: Attentive Teacher-Guided Calibration


def standardise(h: Array, mean: Array, variance: Array, eps: float = 1e-8) -> Array:
    """Section 3.3, first equation with given statistics (running ones at inference). h (B, N, H), others (H,)."""
    return (h - mean) / np.sqrt(variance + eps)


def normalise(h: Array, mask: Array, eps: float = 1e-8) -> tuple[Array, Array, Array]:
    """Section 3.3, first equation: statistics over all real tokens of the batch, biased variance.

    h (B, N, H), mask (B, N). Returns normalised (B, N, H), padding shifted and scaled too, mean (H,), variance (H,).
    """
    tokens = np.concatenate([h[row, real(mask[row])] for row in range(len(h))])  # (all real tokens, H)
    mean = tokens.sum(axis=0) / len(tokens)
    variance = ((tokens - mean) ** 2).sum(axis=0) / len(tokens)
    return standardise(h, mean, variance, eps), mean, variance


def normalise_release(h: Array, mask: Array, eps: float = 1e-8) -> tuple[Array, Array, Array]:
    """The release's Rep-Norm (section 3.3): every sequence weighs the same in the mean, whatever its length.

    mean: mean over sequences of the per-sequence means. variance: mean over all real tokens of the squared deviation
    from it. Shapes as in normalise.
    """
    sequences = [h[row, real(mask[row])] for row in range(len(h))]
    mean = sum(tokens.mean(axis=0) for tokens in sequences) / len(sequences)
    variance = ((np.concatenate(sequences) - mean) ** 2).mean(axis=0)
    return standardise(h, mean, variance, eps), mean, variance


def running_update(
    running_mean: Array, running_var: Array, mean: Array, var: Array, momentum: float = 0.1
) -> tuple[Array, Array]:
    """Section 3.3: one step of one language's running averages, (1 - momentum) old + momentum new. All (H,)."""
    return (1.0 - momentum) * running_mean + momentum * mean, (1.0 - momentum) * running_var + momentum * var


def fading_average(batches: list[Array], momentum: float = 0.1) -> Array:
    """Section 3.3, inference: the batches' statistics (H,), oldest first; each weighs 1 - momentum times the next."""
    weights = np.array([(1.0 - momentum) ** age for age in reversed(range(len(batches)))])
    return sum(weight * batch for weight, batch in zip(weights, batches, strict=True)) / weights.sum()


def teacher_attention(
    h_t: Array, h_s: Array, m_s: Array, wq: Array, bq: Array, wk: Array, bk: Array, heads: int
) -> Array:
    """Section 3.3, second equation: attention of the normalised h~_T over the real tokens of h~_S.

    h_t (B, N_T, H), h_s (B, N_S, H), wq and wk (H, H), bq and bk (H,). Returns (B, A, N_T, N_S).
    """
    return attention_probabilities(linear(h_t, wq, bq), linear(h_s, wk, bk), m_s, heads)


def teacher(
    h_t: Array,
    h_s: Array,
    m_t: Array,
    m_s: Array,
    values: Array,
    wq: Array,
    bq: Array,
    wk: Array,
    bk: Array,
    heads: int,
    variant: str = "renormalised",
) -> Array:
    """Section 3.3, second equation: MHA(h~_T, h~_S, sg(p_S)), averaged over heads; (B, N_T, 2), 0 on padding.

    renormalised (default): values are p_S (B, N_S, 2); each column is divided by its sum over real target tokens.
    raw: values are p_S; nothing is divided. Columns need not sum to 1.
    release: values are logits (B, N_S, 2) and so is the result; softmax_over_real of it is the distribution.
    h_t (B, N_T, H) and h_s (B, N_S, H) are normalised.
    """
    attention = teacher_attention(h_t, h_s, m_s, wq, bq, wk, bk, heads)
    result = np.zeros((len(h_t), h_t.shape[1], 2))
    for row in range(len(h_t)):
        target, source = real(m_t[row]), real(m_s[row])
        moved = sum(attention[row, head][np.ix_(target, source)] @ values[row, source] for head in range(heads)) / heads
        if variant == "renormalised":
            moved = moved / moved.sum(axis=0)
        result[row, target] = moved
    return result


def teacher_loss(p: Array, gold_start: Array, gold_end: Array, holds: Array) -> float:
    """Section 3.3, L_tg: cross-entropy of p_{T|S} at the gold start and end, halved, over rows where holds is true.

    p (B, N_T, 2), gold_start, gold_end and holds (B,). 0 if no row holds. The paper sums start and end.
    """
    losses = []
    for row in range(len(p)):
        if holds[row]:
            start, end = p[row, int(gold_start[row]), 0], p[row, int(gold_end[row]), 1]
            losses.append(-(math.log(start) + math.log(end)) / 2.0)
    return sum(losses) / len(losses) if losses else 0.0


def calibrated(p_teacher: Array, p_target: Array) -> Array:
    """Section 3.3, inference: (p_{T|S} + p_T) / 2. All (B, N_T, 2)."""
    return (p_teacher + p_target) / 2.0


def calibrated_release(logits_teacher: Array, logits_target: Array, mask: Array) -> Array:
    """The release's inference (section 3.3): softmax over real tokens of the sum of logits. All (B, N_T, 2)."""
    return softmax_over_real(logits_teacher + logits_target, mask)


# Section 3.1: span head


def span_distribution(h: Array, mask: Array, weight: Array, bias: Array) -> Array:
    """Section 3.1: p = softmax(W h^L + b) over real tokens, start and end apart; 0 on padding.

    h (B, N, H), weight (2, H), bias (2,). Returns (B, N, 2).
    """
    return softmax_over_real(linear(h, weight, bias), mask)


def span_loss(logits: Array, mask: Array, starts: Array, ends: Array) -> float:
    """Sections 3.1 and 3.5, L_MRC: mean of start and end cross-entropy over real tokens, then mean over rows.

    logits (B, N, 2), mask (B, N), starts and ends (B,).
    """
    total = 0.0
    for row in range(len(logits)):
        scores = logits[row, real(mask[row])]  # (n, 2)
        for column, gold in ((0, int(starts[row])), (1, int(ends[row]))):
            top = scores[:, column].max()
            log_sum = top + math.log(np.exp(scores[:, column] - top).sum())
            total += (log_sum - logits[row, gold, column]) / 2.0
    return float(total / len(logits))


# Section 3.4: Multi-Granularity Semantic Alignment


def mean_pool(h: Array, mask: Array) -> Array:
    """Section 3.4: r, the mean over each row's real tokens. h (B, N, H), result (B, H)."""
    return np.stack([h[row, real(mask[row])].mean(axis=0) for row in range(len(h))])


def sentence_vector_release(h: Array, mask: Array, weight: Array, bias: Array) -> Array:
    """The release's sentence vector (section 3.4): tanh(Linear(mean)). weight (H, H), bias (H,), result (B, H)."""
    return np.tanh(linear(mean_pool(h, mask), weight, bias))


def info_nce(r_s: Array, r_t: Array, passages: Array, temperature: float = 0.05) -> float:
    """Section 3.4, L_align_S: anchor the source, positive its translation, negatives the others' translations.

    Rows with the anchor's passage are no negatives. Mean over rows. r_s and r_t (B, H), passages (B,).
    """
    losses = []
    for anchor in range(len(r_s)):

        def similarity(other: int, anchor: int = anchor) -> float:
            product = float(r_s[anchor] @ r_t[other])
            return product / (math.sqrt(r_s[anchor] @ r_s[anchor]) * math.sqrt(r_t[other] @ r_t[other])) / temperature

        positive = similarity(anchor)
        negatives = [similarity(j) for j in range(len(r_t)) if passages[j] != passages[anchor]]
        # -log(e^p / (e^p + sum e^n)) with e^p divided out
        losses.append(math.log(1.0 + sum(math.exp(negative - positive) for negative in negatives)))
    return sum(losses) / len(losses)


def token_entropy(h_t: Array, h_s: Array, m_t: Array, m_s: Array) -> float:
    """Section 3.4, L_align_T: entropy of softmax(h_T h_S^T / sqrt(H)), in nats, real tokens only.

    Mean over a row's real target tokens, then over rows. h_t (B, N_T, H), h_s (B, N_S, H): inputs of layer k.
    """
    total = 0.0
    for row in range(len(h_t)):
        target, source = h_t[row, real(m_t[row])], h_s[row, real(m_s[row])]
        a = softmax(target @ source.T / math.sqrt(h_t.shape[2]), axis=1)  # (n_T, n_S)
        total += entropy(a, axis=1).mean()
    return float(total / len(h_t))


def token_entropy_release(cross_probabilities: Array, m_t: Array, m_s: Array) -> float:
    """The release's L_align_T (section 3.4): entropy of the head mean P plus that of its transpose, in nats.

    Nothing is renormalised and padding counts: means over all N_T rows and all N_S columns, then over the batch.
    The masks (B, N_T) and (B, N_S) thus only check shapes. cross_probabilities (B, A, N_T, N_S), 0 on padded keys.
    """
    assert cross_probabilities.shape[2:] == (m_t.shape[1], m_s.shape[1])
    total = 0.0
    for row in range(len(cross_probabilities)):
        p = cross_probabilities[row].mean(axis=0)  # (N_T, N_S)
        total += entropy(p, axis=1).mean() + entropy(p, axis=0).mean()
    return float(total / len(cross_probabilities))


# Section 3.5: objective


def total_loss(
    parts: dict[str, float], alpha: float = 0.2, gamma: float = 0.1, zeta: float = 0.05, eta: float = 0.05
) -> float:
    """Section 3.5: alpha L_S + (1 - alpha) L_T + gamma L_tg + zeta L_align_S + eta L_align_T.

    parts: source, target, teacher, sentence and token, in nats.
    """
    span = alpha * parts["source"] + (1.0 - alpha) * parts["target"]
    return span + gamma * parts["teacher"] + zeta * parts["sentence"] + eta * parts["token"]


# Section 4.3: X-MIXUP (Yang et al. 2022), the comparison system


def xmixup_lambda(
    cross_probabilities_ts: Array,
    cross_probabilities_st: Array,
    m_t: Array,
    m_s: Array,
    w: float,
    b: float,
    lambda_0: float = 0.5,
) -> Array:
    """X-MIXUP: lambda = lambda_0 sigmoid(w ECA + b), one a sample. Returns (B,).

    ECA: entropy in nats of the head-mean attention, mean over real queries, target to source plus source to target.
    cross_probabilities_ts (B, A, N_T, N_S), cross_probabilities_st (B, A, N_S, N_T), each 0 on padded keys.
    """
    result = np.zeros(len(m_t))
    for row in range(len(m_t)):
        target, source = real(m_t[row]), real(m_s[row])
        forth = cross_probabilities_ts[row].mean(axis=0)[np.ix_(target, source)]
        back = cross_probabilities_st[row].mean(axis=0)[np.ix_(source, target)]
        eca = entropy(forth, axis=1).mean() + entropy(back, axis=1).mean()
        result[row] = lambda_0 / (1.0 + math.exp(-(w * eca + b)))
    return result


def self_attention_block(h: Array, mask: Array, weights: dict[str, Array], heads: int, eps: float) -> Array:
    """A post-norm encoder layer's attention block: LayerNorm(h + dense(MHA(h, h, h))). h (B, N, H), shape kept."""
    context, _ = multi_head_attention(h, h, h, mask, weights, heads)
    out = linear(context, weights["output.dense.weight"], weights["output.dense.bias"])
    return layer_norm(h + out, weights["output.LayerNorm.weight"], weights["output.LayerNorm.bias"], eps)


def xmixup_layer(
    h_t: Array,
    h_s: Array,
    m_t: Array,
    m_s: Array,
    weights: dict[str, Array],
    heads: int,
    w: float,
    b: float,
    lambda_0: float = 0.5,
    eps: float = 1e-12,
) -> tuple[Array, Array]:
    """X-MIXUP's layer: target = LayerNorm(lambda cross + (1 - lambda) own), before the feed-forward.

    own: each side's full attention block. cross: the target's result attends to the source's through the same
    query, key, value and output dense, with no residual. The same LayerNorm serves both.
    weights: query, key, value, output.dense and output.LayerNorm, each with .weight and .bias.
    h_t (B, N_T, H), h_s (B, N_S, H). Returns the target states (B, N_T, H) and lambda (B,).
    """
    own = self_attention_block(h_t, m_t, weights, heads, eps)
    source = self_attention_block(h_s, m_s, weights, heads, eps)
    context, forth = multi_head_attention(own, source, source, m_s, weights, heads)
    _, back = multi_head_attention(source, own, own, m_t, weights, heads)
    cross = linear(context, weights["output.dense.weight"], weights["output.dense.bias"])
    lam = xmixup_lambda(forth, back, m_t, m_s, w, b, lambda_0)
    mix = np.stack([lam[row] * cross[row] + (1.0 - lam[row]) * own[row] for row in range(len(own))])
    return layer_norm(mix, weights["output.LayerNorm.weight"], weights["output.LayerNorm.bias"], eps), lam


def xmixup_loss(source: float, target: float, r_s: Array, r_t: Array, alpha: float = 0.2) -> float:
    """X-MIXUP's loss: alpha L_S + (1 - alpha) L_T + mean squared distance of the pooled r_s and r_t (B, H)."""
    return alpha * source + (1.0 - alpha) * target + float(((r_s - r_t) ** 2).mean())


def xmixup_gold_probability(step: int, k: float = 2000.0) -> float:
    """X-MIXUP: chance of gold English as the source at a training step, k / (k + exp(step / k))."""
    return k / (k + math.exp(step / k))

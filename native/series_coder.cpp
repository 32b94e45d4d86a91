#include "series_coder.h"

#include <cmath>
#include <cstring>

namespace genmote {

namespace {

double of_bits(uint64_t u) { double d; std::memcpy(&d, &u, sizeof d); return d; }
uint64_t bits_of(double d) { uint64_t u; std::memcpy(&u, &d, sizeof u); return u; }

double exponential(double x) {
    if (x < -700) x = -700;
    if (x > 700) x = 700;
    constexpr double to_whole = 6755399441055744.0;  // 1.5 * 2^52: what is added to it loses its fraction
    const double k = (x * 1.4426950408889634 + to_whole) - to_whole;
    const double r = (x - k * 0.69314718036912382) - k * 1.9082149292705877e-10;
    constexpr double parts[] = {479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1};
    double p = 0;
    for (double part : parts) p = p * r + 1.0 / part;
    return p * of_bits(static_cast<uint64_t>(static_cast<int64_t>(k) + 1023) << 52);
}

double logarithm(double x) {  // of a normal number above 0
    const uint64_t u = bits_of(x);
    int64_t e = static_cast<int64_t>(u >> 52) - 1023;
    double m = of_bits((u & 0xfffffffffffff) | 0x3ff0000000000000);
    if (m > 1.4142135623730951) m *= 0.5, e++;
    const double s = (m - 1) / (m + 1), z = s * s;
    double p = 0;
    for (int odd = 17; odd >= 1; odd -= 2) p = p * z + 1.0 / odd;
    return 2 * s * p + static_cast<double>(e) * 0.69314718055994531;
}

double share(double part, double of) { return of > 1e-290 ? part / of : 0.5; }
double magnitude(double x) { return x < 0 ? -x : x; }
double within(double x, double low, double high) { return x > low ? (x < high ? x : high) : low; }  // NaN: low
double squash(double t) { return 1 / (1 + exponential(-t)); }
double stretch(double p) { return logarithm(p / (1 - p)); }

constexpr double kLeast = 1.0 / 65536;  // a probability is at least this, and at most 1 less this

class ArithmeticCoder {
public:
    std::vector<uint8_t>* out = nullptr;  // null: decodes
    const uint8_t *in = nullptr, *end = nullptr;

    void start() { for (int i = 0; i < 4; i++) x_ = x_ << 8 | next(); }

    bool code(bool bit, double p_of_one) {
        const auto share = static_cast<uint32_t>(p_of_one * 4294967295.0);
        const uint32_t middle = low_ + static_cast<uint32_t>((static_cast<uint64_t>(high_ - low_) * share) >> 32);
        if (!out) bit = x_ <= middle;
        if (bit) high_ = middle;
        else low_ = middle + 1;
        while (!((low_ ^ high_) >> 24)) {
            if (out) out->push_back(static_cast<uint8_t>(high_ >> 24));
            else x_ = x_ << 8 | next();
            low_ <<= 8;
            high_ = high_ << 8 | 255;
        }
        return bit;
    }

    void finish() {  // as few bytes as tell a number within [low, high]; after the end the decoder reads zeros
        uint32_t kept = 0;
        int bytes = 0;
        for (; bytes <= 4; bytes++) {
            const uint32_t rest = bytes < 4 ? 0xffffffffu >> (8 * bytes) : 0;
            kept = (low_ + rest) & ~rest;
            if (kept >= low_ && kept <= high_) break;
        }
        for (int i = 0; i < bytes; i++) out->push_back(static_cast<uint8_t>(kept >> (24 - 8 * i)));
    }

private:
    uint8_t next() { return in < end ? *in++ : 0; }
    uint32_t low_ = 0, high_ = 0xffffffff, x_ = 0;
};

// Least squares over what was seen, the older the less.
class LeastSquares {
public:
    explicit LeastSquares(int n) : n_(n), moments_(size_t(n) * n), factor_(size_t(n) * n), cross_(n), weights_(n), half_(n) {}

    double predict(const double* x) const {
        double sum = 0;
        for (int i = 0; i < n_; i++) sum += weights_[i] * x[i];
        return sum;
    }

    void learn(const double* x, double y) {
        constexpr double kept = 0.9985;
        constexpr int every = 2;
        for (int i = 0; i < n_; i++) {
            double* row = &moments_[size_t(i) * n_];
            const double share = (1 - kept) * x[i];
            for (int j = 0; j <= i; j++) row[j] = kept * row[j] + share * x[j];
            cross_[i] = kept * cross_[i] + share * y;
        }
        if (++seen_ % every == 0) solve();
    }

    // As if what has these mean products with itself (rows of `wide`, the lower half) and with what it predicts had been seen.
    void start(const double* moments, size_t wide, const double* cross) {
        for (int i = 0; i < n_; i++) {
            for (int j = 0; j <= i; j++) moments_[size_t(i) * n_ + j] = moments[size_t(i) * wide + j];
            cross_[i] = cross[i];
        }
        solve();
    }

private:
    void solve() {
        constexpr double ridge = 1e-5, floor = 1e-3;
        for (int i = 0; i < n_; i++) {
            double* row = &factor_[size_t(i) * n_];
            for (int j = 0; j <= i; j++) {
                const double* other = &factor_[size_t(j) * n_];
                double s = moments_[size_t(i) * n_ + j];
                if (i == j) s = s + ridge * s + floor;
                for (int k = 0; k < j; k++) s -= row[k] * other[k];
                if (i > j) row[j] = s / other[j];
                else if (s > 1e-9) row[i] = std::sqrt(s);
                else return;  // numerically singular: the weights stay
            }
        }
        for (int i = 0; i < n_; i++) {
            double s = cross_[i];
            for (int k = 0; k < i; k++) s -= factor_[size_t(i) * n_ + k] * half_[k];
            half_[i] = s / factor_[size_t(i) * n_ + i];
        }
        for (int i = n_ - 1; i >= 0; i--) {
            double s = half_[i];
            for (int k = i + 1; k < n_; k++) s -= factor_[size_t(k) * n_ + i] * weights_[k];
            weights_[i] = s / factor_[size_t(i) * n_ + i];
        }
    }

    int n_;
    int64_t seen_ = 0;
    std::vector<double> moments_, factor_, cross_, weights_, half_;
};

// A long predictor of what the one before could not, by normalised gradient steps.
class Gradient {
public:
    Gradient(int n, double rate) : n_(n), rate_(rate), weights_(n), past_(size_t(n) * 2) {}
    std::vector<double>& weights() { return weights_; }

    double predict() {
        const double* x = &past_[at_];
        double sum = 0;
        for (int i = 0; i < n_; i++) sum += weights_[i] * x[i];
        return told_ = sum;
    }

    void learn(double y) {
        const double* x = &past_[at_];
        double power = 0;
        for (int i = 0; i < n_; i++) power += x[i] * x[i];
        const double step = rate_ * (y - told_) / (1e-3 + power);
        for (int i = 0; i < n_; i++) weights_[i] += step * x[i];
        at_ = at_ ? at_ - 1 : n_ - 1;
        past_[at_] = past_[at_ + n_] = y;
    }

private:
    int n_, at_ = 0;
    double rate_, told_ = 0;
    std::vector<double> weights_, past_;
};

constexpr int kShapes = 7, kContexts = 5, kInputs = kContexts + 2, kNodes = 320, kTableBits = 12, kMostBits = 53, kStages = 3;

struct Counter { double p = 0.5, seen = 0; };

// What a model expects of one sample: shares of bins between cuts, even within each. Nothing lies beyond the cuts.
class Expected {
public:
    Expected(const double* cuts, int bins) : cuts_(cuts), bins_(bins), below_(size_t(bins) + 1) {}
    bool there() const { return bins_ > 0; }

    void hear(const float* logits) {
        float most = -3e38f;
        for (int i = 0; i < bins_; i++) most = logits[i] > most ? logits[i] : most;
        double sum = 0;
        below_[0] = 0;
        for (int i = 0; i < bins_; i++) {
            const double off = within(static_cast<double>(logits[i]) - static_cast<double>(most), kFar, 0);
            if (off > kFar) sum += exponential(off);
            below_[i + 1] = sum;
        }
        if (!(sum > 0)) for (int i = 0; i <= bins_; i++) below_[i] = sum = i;  // logits that are no numbers
        for (int i = 1; i <= bins_; i++) below_[i] = below_[i] / sum;
        mean = 0;
        for (int i = 0; i < bins_; i++) mean += (below_[i + 1] - below_[i]) * (0.5 * (cuts_[i] + cuts_[i + 1]));
    }

    double below(double at) const {
        if (!(at > cuts_[0])) return 0;
        if (!(at < cuts_[bins_])) return 1;
        int low = 0, high = bins_;  // cuts[low] < at < cuts[high]... the last cut that is not above
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            if (cuts_[middle] <= at) low = middle;
            else high = middle;
        }
        const double wide = cuts_[low + 1] - cuts_[low];
        return below_[low] + (below_[low + 1] - below_[low]) * (wide > 0 ? (at - cuts_[low]) / wide : 0);
    }

    double mean = 0;

private:
    static constexpr double kFar = -30;
    const double* cuts_;
    int bins_;
    std::vector<double> below_;
};

struct Part { double mixed, told; };  // what lies below a place: of the mixture, and of what the model expects

// A mixture of distributions around a place: Laplace's and logistic ones, of widths that follow the errors at three speeds.
struct Around {
    double place, width[kShapes], share[kShapes];
    double below(double at, double* each) const {
        double sum = 0;
        for (int i = 0; i < kShapes; i++) {
            const double z = (at - place) / width[i];
            if (i < 3) {
                const double tail = 0.5 * exponential(-magnitude(z));
                each[i] = z < 0 ? tail : 1 - tail;
            } else each[i] = squash(z);
            sum += share[i] * each[i];
        }
        return sum;
    }
};

int coarse(int64_t r) {
    const int64_t a = r < 0 ? -r : r;
    const int q = a <= 2 ? static_cast<int>(a) : a <= 4 ? 3 : a <= 8 ? 4 : a <= 16 ? 5 : a <= 64 ? 6 : 7;
    return r < 0 ? -q : q;
}

int past_of(int channels) { return channels == 1 ? 32 : channels <= 4 ? 16 : 8; }
int others_of(int channels) { return channels - 1 < 11 ? channels - 1 : 11; }

class Channel {
public:
    Channel(int number, int channels, const double* cuts, int bins)
        : number_(number), channels_(channels), past_(past_of(channels)), others_(others_of(channels)), expected_(cuts, cuts ? bins : 0),
          inputs_(kContexts + 1 + (cuts ? 1 : 0)), near_(past_ + 2 * others_ + (cuts ? 1 : 0)), x_(size_t(past_) + 2 * others_ + (cuts ? 1 : 0)),
          far_{{256, 0.002}, {32, 0.004}, {16, 0.008}}, mix_(size_t(kNodes) * kInputs), seen_(kNodes) {
        for (double& one : around_.share) one = 1.0 / kShapes;
        for (auto& table : tables_) table.resize(size_t(1) << kTableBits);
        for (int node = 0; node < kNodes; node++) {
            mix_[size_t(node) * kInputs] = 1;
            mix_[size_t(node) * kInputs + kContexts + 1] = 0.2;
        }
    }

    // Begin with what was learnt of other recordings: mean products of the inputs, and what `learnt` told.
    void start(const double* moments, size_t wide, const double* cross, const double* state) {
        near_.start(moments, wide, cross);
        each_of(const_cast<double*>(state), [](double& own, double& other) { own = other; });
        for (double& one : seen_) one = 0;
        begun_ = 30;
    }

    void learnt(double* state) {
        each_of(state, [](double& own, double& other) { other = own; });
    }

    bool told() const { return expected_.there(); }

    // Codes the sample at time t, which `samples` (all of them, row by row) holds when encoding and is given when decoding.
    void code(ArithmeticCoder& coder, int64_t* samples, int64_t t, const float* logits) {
        int64_t* sample = samples + t * channels_ + number_;
        gather(samples, t);
        if (expected_.there()) {
            expected_.hear(logits);
            x_.back() = expected_.mean;
        }
        const double near = near_.predict(x_.data());
        double far[kStages], place = near;
        for (int i = 0; i < kStages; i++) place += far[i] = far_[i].predict();
        constexpr double most = 1125899906842624.0;  // 2^50
        around_.place = place = within(place, -most, most);
        const auto whole = static_cast<int64_t>(place + (place < 0 ? -0.5 : 0.5));
        for (int i = 0; i < 3; i++) around_.width[i] = widths_[i], around_.width[3 + i] = 0.6 * widths_[i];
        around_.width[6] = 3 * widths_[1];
        contexts(whole, t ? sample[-channels_] : 0);
        double low[kShapes], high[kShapes];
        const int64_t error = code_error(coder, coder.out ? *sample - whole : 0, whole, low, high);
        *sample = whole + error;
        learn(static_cast<double>(*sample), near, far, error, t, low, high);
    }

private:
    Part part_below(double at, double* each) const { return {around_.below(at, each), expected_.there() ? expected_.below(at) : 0}; }

    // kStateSize numbers: weights of the mixing of decisions and how many each node took, weights of the long predictors, shares,
    // widths, size, counters' probabilities, how much each counter saw.
    template <typename Use> void each_of(double* state, Use use) {
        for (double& one : mix_) use(one, *state++);
        for (double& one : seen_) use(one, *state++);
        for (Gradient& stage : far_) for (double& one : stage.weights()) use(one, *state++);
        for (double& one : around_.share) use(one, *state++);
        for (double& one : widths_) use(one, *state++);
        use(size_, *state++);
        for (auto& table : tables_) for (Counter& one : table) use(one.p, *state++);
        for (auto& table : tables_) for (Counter& one : table) use(one.seen, *state++);
    }

    void gather(const int64_t* samples, int64_t t) {
        const auto at = [&](int channel, int64_t time) { return time < 0 ? 0.0 : static_cast<double>(samples[time * channels_ + channel]); };
        int n = 0;
        for (int i = 1; i <= past_; i++) x_[n++] = at(number_, t - i);
        for (int i = 1; i <= others_; i++) {  // of a channel that is coded before this one its present, of one after it its past
            const int other = (number_ - i + channels_) % channels_;
            const int64_t last = other < number_ ? t : t - 1;
            x_[n++] = at(other, last);
            x_[n++] = at(other, last - 1);
        }
    }

    void contexts(int64_t whole, int64_t before) {
        uint32_t level = 1;
        for (double a = size_; a > 0.5 && level < 16; a *= 0.6) level++;
        const int64_t back = before - whole;
        const auto near = static_cast<uint32_t>((back < -20 ? -20 : back > 20 ? 20 : back) + 100);
        const auto errors = static_cast<uint32_t>((coarse(last_) + 8) * 16 + coarse(last_but_one_) + 1008);
        const auto at = static_cast<uint32_t>((static_cast<uint64_t>(whole) * 2654435761u) >> 3);
        const uint32_t found[kContexts] = {0, level, near, errors, at};
        std::memcpy(contexts_, found, sizeof found);
    }

    // One decision: what the distribution expects, weighed with what was decided so far in five contexts.
    bool decide(ArithmeticCoder& coder, int node, uint32_t key, Part expected, bool value) {
        double in[kInputs];
        Counter* counters[kContexts];
        in[0] = stretch(within(expected.mixed, 1e-7, 1 - 1e-7));
        if (expected_.there()) in[kContexts + 1] = stretch(within(expected.told, 1e-4, 1 - 1e-4));
        for (int i = 0; i < kContexts; i++) {
            uint32_t h = (key * 0x9E3779B1u) ^ (contexts_[i] * 0x85EBCA6Bu + static_cast<uint32_t>(i) * 0xC2B2AE35u);
            h ^= h >> 15;
            h *= 0x2C1B3C6Du;
            h ^= h >> 13;
            counters[i] = &tables_[i][h >> (32 - kTableBits)];
            in[i + 1] = counters[i]->seen < 2 ? 0 : stretch(counters[i]->p);
        }
        double* weights = &mix_[size_t(node) * kInputs];
        double sum = 0;
        for (int i = 0; i < inputs_; i++) sum += weights[i] * in[i];
        const double p = within(squash(sum), kLeast, 1 - kLeast);
        value = coder.code(value, p);
        const double truth = value ? 1 : 0;
        for (int i = 0; i < inputs_; i++) weights[i] += 0.01 * (truth - p) * in[i];
        seen_[size_t(node)] += 1;
        for (Counter* one : counters) {
            one->p = within(one->p + (truth - one->p) / (one->seen + 1.6), 0.0005, 0.9995);
            if (one->seen < 200) one->seen += 1;
        }
        return value;
    }

    // Is it 0; above 0; for each power of two, is it as much; then its bits from the highest on. `low`, `high`: the distributions'
    // parts below the two ends of what was found.
    int64_t code_error(ArithmeticCoder& coder, int64_t error, int64_t whole, double* low, double* high) {
        constexpr size_t each_size = sizeof(double) * kShapes;
        const auto middle = static_cast<double>(whole);
        const Part below = part_below(middle - 0.5, low), above = part_below(middle + 0.5, high);
        if (decide(coder, 0, 0, {above.mixed - below.mixed, above.told - below.told}, error == 0)) return 0;
        const Part over{1 - above.mixed, 1 - above.told};
        const bool up = decide(coder, 1, 1, {over.mixed / (over.mixed + below.mixed + 1e-300), over.told / (over.told + below.told + 1e-300)}, error > 0);
        const int64_t size = error < 0 ? -error : error;
        // From here on distances from `whole`: `inner` is the part on the near side of the nearer end, `outer` of the farther.
        const auto beyond = [&](double distance, double* each) {
            const Part part = part_below(up ? middle + distance : middle - distance, each);
            return up ? Part{1 - part.mixed, 1 - part.told} : part;
        };
        Part inner = up ? over : below, outer;
        if (up) std::memcpy(low, high, each_size);
        int e = 0;
        for (;; e++) {
            outer = beyond(static_cast<double>(int64_t(1) << (e + 1)) - 0.5, high);
            if (e == kMostBits - 1) break;
            const uint32_t key = static_cast<uint32_t>(2 + e) + (up ? 64 : 0);
            if (!decide(coder, 2 + e, key, {share(outer.mixed, inner.mixed), share(outer.told, inner.told)}, size >> (e + 1) != 0)) break;
            inner = outer;
            std::memcpy(low, high, each_size);
        }
        int64_t found = int64_t(1) << e;
        for (int b = e - 1; b >= 0; b--) {
            const int64_t half = found + (int64_t(1) << b);
            const int depth = e - 1 - b;
            double each[kShapes];
            const Part part = beyond(static_cast<double>(half) - 0.5, each);
            const Part expected{share(part.mixed - outer.mixed, inner.mixed - outer.mixed), share(part.told - outer.told, inner.told - outer.told)};
            const uint32_t key = depth < 12 ? 1000 + static_cast<uint32_t>(e * 4096 + (found >> (b + 1))) * 2 + up : 500 + static_cast<uint32_t>(b);
            const int node = 64 + (e < 20 ? e : 20) * 12 + (depth < 11 ? depth : 11);
            if (decide(coder, node, key, expected, size >> b & 1)) {
                found = half;
                inner = part;
                std::memcpy(low, each, each_size);
            } else {
                outer = part;
                std::memcpy(high, each, each_size);
            }
        }
        return up ? found : -found;
    }

    void learn(double y, double near, const double* far, int64_t error, int64_t t, const double* low, const double* high) {
        double total = 0;
        for (int i = 0; i < kShapes; i++) total += around_.share[i] *= magnitude(high[i] - low[i]) + 1e-6;
        for (double& one : around_.share) one = 0.97 * one / total + 0.03 / kShapes;
        const double off = magnitude(y - around_.place);
        constexpr double speeds[] = {0.12, 0.03, 0.006};
        for (int i = 0; i < 3; i++) {
            const double first = 1.0 / static_cast<double>(t + begun_), speed = first > speeds[i] ? first : speeds[i];
            widths_[i] = widths_[i] + speed * (off - widths_[i]);
            if (widths_[i] < 0.05) widths_[i] = 0.05;
        }
        size_ += 0.1 * (off - size_);
        last_but_one_ = last_;
        last_ = error;
        near_.learn(x_.data(), y);
        double left = y - near;
        for (int i = 0; i < kStages; i++) {
            far_[i].learn(left);
            left -= far[i];
        }
    }

    int number_, channels_, past_, others_;
    Expected expected_;
    int inputs_, begun_ = 2;
    LeastSquares near_;
    std::vector<double> x_;
    Gradient far_[kStages];
    Around around_{};
    double widths_[3] = {16, 16, 16}, size_ = 1;
    int64_t last_ = 0, last_but_one_ = 0;
    uint32_t contexts_[kContexts] = {};
    std::vector<Counter> tables_[kContexts];
    std::vector<double> mix_, seen_;
};

}  // namespace

struct SeriesCoder::Inside {
    ArithmeticCoder coder;
    std::vector<uint8_t> bytes;
    std::vector<Channel> channels;
    int64_t t = 0;
    size_t next = 0;
};

int series_inputs(int channels) { return past_of(channels) + 2 * others_of(channels) + 1; }

SeriesCoder::SeriesCoder(int64_t* samples, int64_t rows, int channels, const Help& help, const uint8_t* bytes, int64_t count)
    : samples_(samples), rows_(rows), bins_(help.bins), inside_(std::make_unique<Inside>()) {
    Inside& in = *inside_;
    const auto wide = static_cast<size_t>(series_inputs(channels));
    for (size_t k = 0; k < static_cast<size_t>(channels); k++) {
        const bool told = k < help.told.size() && help.told[k] >= 0;
        in.channels.emplace_back(static_cast<int>(k), channels, told ? help.cuts + static_cast<size_t>(help.told[k]) * (static_cast<size_t>(bins_) + 1) : nullptr, bins_);
        if (k < help.practised.size() && help.practised[k] >= 0) {
            const auto at = static_cast<size_t>(help.practised[k]);
            in.channels.back().start(help.moments + at * wide * wide, wide, help.cross + at * wide, help.states + at * kStateSize);
        }
    }
    if (bytes) {
        in.coder.in = bytes;
        in.coder.end = bytes + count;
        in.coder.start();
    } else in.coder.out = &in.bytes;
}

SeriesCoder::~SeriesCoder() = default;

bool SeriesCoder::go(const float* logits, int64_t count) {
    Inside& in = *inside_;
    for (; in.t < rows_; in.t++, in.next = 0)
        for (; in.next < in.channels.size(); in.next++) {
            const bool told = in.channels[in.next].told();
            if (told && !count) return true;
            in.channels[in.next].code(in.coder, samples_, in.t, logits);
            if (told) logits += bins_, count--;
        }
    return false;
}

void SeriesCoder::learnt(double* states) {
    for (Channel& one : inside_->channels) one.learnt(states), states += kStateSize;
}

std::vector<uint8_t> SeriesCoder::finish() {
    inside_->coder.finish();
    return std::move(inside_->bytes);
}

std::vector<uint8_t> encode_samples(const int64_t* samples, int64_t rows, int channels) {
    SeriesCoder coder(const_cast<int64_t*>(samples), rows, channels, {});  // what is written back is what was there
    coder.go(nullptr, 0);
    return coder.finish();
}

void decode_samples(const uint8_t* bytes, int64_t count, int64_t* samples, int64_t rows, int channels) {
    SeriesCoder(samples, rows, channels, {}, bytes, count).go(nullptr, 0);
}

}  // namespace genmote

// The Python face of the coder of samples.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "series_coder.h"

using Samples = Exactly<const int64_t, nb::ndim<2>>;
using SamplesOut = Exactly<int64_t, nb::ndim<2>>;
using Cuts = Exactly<const double, nb::ndim<2>>;
using Moments = Exactly<const double, nb::ndim<3>>;
using StatesOut = Exactly<double, nb::ndim<2>>;
using Logits = Exactly<const float, nb::ndim<2>>;

namespace {

void fits(int64_t rows, int64_t channels) {
    need(channels >= 1 && channels <= genmote::kMostChannels, "samples: from 1 to 64 channels are coded together");
    need(rows <= kMostRows, "samples: too many rows");
}

nb::bytes encode(Samples samples) {
    const auto rows = static_cast<int64_t>(samples.shape(0)), channels = static_cast<int64_t>(samples.shape(1));
    fits(rows, channels);
    for (int64_t i = 0; i < rows * channels; i++)
        need(samples.data()[i] < genmote::kMostSample && samples.data()[i] > -genmote::kMostSample, "samples: wanted numbers of less than 48 bits");
    std::vector<uint8_t> coded;
    {
        nb::gil_scoped_release free;
        coded = genmote::encode_samples(samples.data(), rows, static_cast<int>(channels));
    }
    return nb::bytes(reinterpret_cast<const char*>(coded.data()), coded.size());
}

void decode(Bytes coded, SamplesOut samples) {
    const auto rows = static_cast<int64_t>(samples.shape(0)), channels = static_cast<int64_t>(samples.shape(1));
    fits(rows, channels);
    nb::gil_scoped_release free;
    genmote::decode_samples(coded.data(), static_cast<int64_t>(coded.shape(0)), samples.data(), rows, static_cast<int>(channels));
}

// A coder and the arrays that it reads.
class PyCoder {
public:
    PyCoder(SamplesOut samples, std::vector<int> told, Cuts cuts, std::vector<int> practised, Moments moments, Cuts cross, Cuts states, std::optional<Bytes> coded)
        : samples_(std::move(samples)), cuts_(std::move(cuts)), coded_(std::move(coded)) {
        const auto rows = static_cast<int64_t>(samples_.shape(0)), channels = static_cast<int64_t>(samples_.shape(1));
        fits(rows, channels);
        const auto wide = static_cast<size_t>(genmote::series_inputs(static_cast<int>(channels)));
        need(told.size() == size_t(channels) && practised.size() == size_t(channels), "told, practised: wanted one for each channel");
        for (int one : told) need(one < static_cast<int>(cuts_.shape(0)), "cuts: fewer than told of");
        need(cuts_.shape(0) == 0 || cuts_.shape(1) > 1, "cuts: wanted two or more");
        for (int one : practised) need(one < static_cast<int>(moments.shape(0)), "moments: fewer than practised");
        const size_t count = moments.shape(0);
        need(moments.shape(1) == wide && moments.shape(2) == wide && cross.shape(0) == count && cross.shape(1) == wide, "moments: of other channels");
        need(states.shape(0) == count && states.shape(1) == size_t(genmote::kStateSize), "states: of another size");
        genmote::Help help{std::move(told), std::move(practised), cuts_.data(), cuts_.shape(0) ? static_cast<int>(cuts_.shape(1)) - 1 : 0,
                           moments.data(), cross.data(), states.data()};
        bins_ = help.bins;
        coder_ = std::make_unique<genmote::SeriesCoder>(samples_.data(), rows, static_cast<int>(channels), help, coded_ ? coded_->data() : nullptr,
                                                        coded_ ? static_cast<int64_t>(coded_->shape(0)) : 0);
    }

    bool go(Logits logits) {
        need(logits.shape(0) == 0 || static_cast<int>(logits.shape(1)) == bins_, "logits: of another number of bins");
        nb::gil_scoped_release free;
        return coder_->go(logits.data(), static_cast<int64_t>(logits.shape(0)));
    }

    void learnt(StatesOut states) {
        need(states.shape(0) == samples_.shape(1) && states.shape(1) == size_t(genmote::kStateSize), "states: of another size");
        coder_->learnt(states.data());
    }

    nb::bytes finish() {
        const std::vector<uint8_t> coded = coder_->finish();
        return nb::bytes(reinterpret_cast<const char*>(coded.data()), coded.size());
    }

private:
    SamplesOut samples_;
    Cuts cuts_;
    std::optional<Bytes> coded_;
    int bins_ = 0;
    std::unique_ptr<genmote::SeriesCoder> coder_;
};

}  // namespace

void bind_series(nb::module_& module) {
    using namespace nb::literals;
    module.def("encode_samples", &encode, "samples"_a, "The bytes of whole numbers (rows, channels) int64: see genmote/signals/adaptive.py.");
    module.def("decode_samples", &decode, "coded"_a, "samples"_a, "Fill samples (rows, channels) int64 with what was coded.");
    nb::class_<PyCoder>(module, "SeriesCoder", "Codes samples as far as a model's logits reach: see genmote/signals/adaptive.py.")
        .def(nb::init<SamplesOut, std::vector<int>, Cuts, std::vector<int>, Moments, Cuts, Cuts, std::optional<Bytes>>(), "samples"_a, "told"_a, "cuts"_a,
             "practised"_a, "moments"_a, "cross"_a, "states"_a, "coded"_a.none())
        .def("go", &PyCoder::go, "logits"_a, "Code on with logits (n, bins) of the next samples told of; whether it waits for more.")
        .def("learnt", &PyCoder::learnt, "states"_a, "Fill states (channels, size) with what was learnt.")
        .def("finish", &PyCoder::finish, "What was encoded.");
    module.attr("STATE_SIZE") = genmote::kStateSize;
}

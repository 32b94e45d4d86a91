// A small pool for loops that last microseconds. Tasks of a loop are claimed one by one, so that a slow or absent worker
// only takes fewer of them; workers wait briefly for the next loop, then sleep.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace genmote {

class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    int threads() const { return threads_; }
    // At most so many take part from the next loop on (1 to threads()); results do not depend on it.
    void limit(int threads) { limit_ = threads; }
    int limit() const { return limit_; }

    std::mutex busy;  // whoever calls run holds it; a fork waits for it, so that the child's copy is at rest

    // f(task, worker) for each task in [0, n); worker < threads(). Returns when all are done; std::bad_alloc where f threw.
    template <typename F> void run(int n, F&& f) {
        auto call = [](void* context, int task, int worker) { (*static_cast<std::remove_reference_t<F>*>(context))(task, worker); };
        run_raw(n, call, &f);
    }

  private:
    using Call = void (*)(void*, int, int);
    void run_raw(int n, Call call, void* context);
    void work(int id);
    bool claim_and_run(int worker);
    void start();
    void wait(int n, int64_t begin, int mine);
    static void before_fork();
    static void after_fork(bool child);

    const int threads_;
    // epoch (24 bits) | number of tasks (20) | next task (20): one word, so that a late worker can never mistake one loop for another.
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int> done_{0};
    alignas(64) std::atomic<uint32_t> epoch_{0};  // what sleeping workers wait on
    std::atomic<int> asleep_{0};
    std::atomic<int> limit_;   // most that may take part
    std::atomic<int> active_;  // that do take part: fewer while a core is busy with somebody else's work
    std::atomic<bool> stop_{false}, failed_{false};
    bool started_ = false;  // workers come with the first loop, and again with a forked child's first loop
    Call call_ = nullptr;
    void* context_ = nullptr;
    int64_t retry_at_ = 0, backoff_ns_ = 0;
    std::vector<std::thread> workers_;
};

}  // namespace genmote

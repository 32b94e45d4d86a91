#include "threads.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <ctime>
#include <new>
#include <system_error>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <condition_variable>
#include <mutex>
#endif

namespace genmote {
namespace {

constexpr int64_t kSpin = 60'000;      // ns that a worker waits for the next loop before it sleeps
constexpr int64_t kPatience = 150'000; // ns beyond which a worker that holds a task counts as preempted
constexpr int64_t kBackoff = 40'000'000, kMostBackoff = 640'000'000;
constexpr int kMostTasks = 1 << 19;  // of one loop: the ticket has 20 bits for them, and idle workers draw beyond the end

int64_t now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1'000'000'000ll + t.tv_nsec;
}

inline void pause_cpu() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

#if defined(__linux__)
void wait_while(std::atomic<uint32_t>& word, uint32_t value) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
void wake_all(std::atomic<uint32_t>& word) { syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }
void yield() { sched_yield(); }
#else
std::mutex gate_mutex;
std::condition_variable gate;
void wait_while(std::atomic<uint32_t>& word, uint32_t value) {
    std::unique_lock<std::mutex> lock(gate_mutex);
    gate.wait(lock, [&] { return word.load() != value; });
}
void wake_all(std::atomic<uint32_t>&) { std::lock_guard<std::mutex> lock(gate_mutex); gate.notify_all(); }
void yield() { std::this_thread::yield(); }
#endif

struct Living {
    std::mutex mutex;
    std::vector<Pool*> pools;
};
Living& living() {
    static Living* l = new Living;  // never destroyed: a process may still fork while it exits
    return *l;
}

}  // namespace

Pool::Pool(int threads) : threads_(std::max(1, threads)), limit_(threads_), active_(threads_) {
#if defined(__unix__) || defined(__APPLE__)
    static const int registered = pthread_atfork(before_fork, [] { after_fork(false); }, [] { after_fork(true); });
    static_cast<void>(registered);
#endif
    std::lock_guard<std::mutex> lock(living().mutex);
    living().pools.push_back(this);
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> lock(living().mutex);
        auto& pools = living().pools;
        pools.erase(std::find(pools.begin(), pools.end(), this));
    }
    stop_ = true;
    epoch_.fetch_add(1);
    wake_all(epoch_);
    for (auto& w : workers_) w.join();
}

// A fork waits until every pool is between two loops. The child has none of the workers: it forgets them, and its first
// loop starts others.
void Pool::before_fork() {
    living().mutex.lock();
    for (Pool* p : living().pools) p->busy.lock();
}

void Pool::after_fork(bool child) {
    for (Pool* p : living().pools) {
        if (child && p->started_) {
            new std::vector<std::thread>(std::move(p->workers_));  // there is nobody to join: left alone for good
            p->workers_.clear();
            p->started_ = false;
            p->ticket_ = 0;
            p->epoch_ = 0;
            p->asleep_ = 0;
        }
        p->busy.unlock();
    }
    living().mutex.unlock();
}

void Pool::start() {
    started_ = true;
    try {
        for (int i = 1; i < threads_; i++) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error&) {  // no more threads to be had: those that are here share the work
    }
}

bool Pool::claim_and_run(int worker) {
    uint64_t t = ticket_.fetch_add(1, std::memory_order_acq_rel);
    int task = static_cast<int>(t & 0xfffff), n = static_cast<int>(t >> 20 & 0xfffff);
    if (task >= n) return false;
    // The loop cannot end before this task has: call_ and context_ are this loop's.
    try {
        call_(context_, task, worker);
    } catch (...) {
        failed_ = true;
    }
    done_.fetch_add(1, std::memory_order_release);
    return true;
}

void Pool::work(int id) {
    uint32_t seen = 0;  // what the pool began with: a worker that starts late must not sleep through a stop
    for (;;) {
        int64_t until = 0;
        for (int i = 0; epoch_.load(std::memory_order_acquire) == seen; i++) {
            pause_cpu();
            if (i % 64 != 63) continue;
            int64_t t = now();
            if (!until) until = t + kSpin;
            if (t < until) continue;
            asleep_.fetch_add(1);
            while (epoch_.load() == seen) wait_while(epoch_, seen);
            asleep_.fetch_sub(1);
        }
        seen = epoch_.load(std::memory_order_acquire);
        if (stop_) return;  // after the epoch: the last one always comes with the stop
        if (id >= active_.load(std::memory_order_relaxed)) {  // sleep this loop out
            asleep_.fetch_add(1);
            while (epoch_.load() == seen) wait_while(epoch_, seen);
            asleep_.fetch_sub(1);
            continue;
        }
        while (claim_and_run(id)) {}
    }
}

void Pool::run_raw(int n, Call call, void* context) {
    if (n <= 0) return;
    if (n > kMostTasks) {
        struct Part { Call call; void* context; int first; };
        for (int first = 0; first < n; first += kMostTasks) {
            Part part{call, context, first};
            run_raw(std::min(kMostTasks, n - first), [](void* p, int task, int worker) {
                auto* part = static_cast<Part*>(p);
                part->call(part->context, part->first + task, worker);
            }, &part);
        }
        return;
    }
    const int64_t begin = now();
    const int most = limit_.load(std::memory_order_relaxed);
    if (active_ > most || (active_ < most && begin >= retry_at_)) active_ = most;
    if (n == 1 || active_ == 1) {
        for (int i = 0; i < n; i++) call(context, i, 0);
        return;
    }
    if (!started_) start();
    call_ = call;
    context_ = context;
    failed_ = false;
    done_.store(0, std::memory_order_relaxed);
    uint64_t epoch = (ticket_.load(std::memory_order_relaxed) >> 40) + 1;
    ticket_.store((epoch & 0xffffff) << 40 | static_cast<uint64_t>(n) << 20, std::memory_order_release);
    epoch_.fetch_add(1);
    if (asleep_.load()) wake_all(epoch_);
    int mine = 1;
    while (claim_and_run(0)) mine++;
    wait(n, begin, mine);
    if (failed_) throw std::bad_alloc();  // nothing else can go wrong in a kernel
}

// Until the others have finished what they hold; `mine` of the n tasks took this thread since `begin`.
void Pool::wait(int n, int64_t begin, int mine) {
    if (done_.load(std::memory_order_acquire) == n) return;
    const int64_t start = now(), patience = kPatience + 3 * (start - begin) / mine;
    for (int i = 1; done_.load(std::memory_order_acquire) < n; i++) {
        pause_cpu();
        if (i % 256) continue;
        // A worker still holds a task. If this core is wanted by it, let it run.
        if (now() - start > patience / 4) yield();
    }
    int64_t waited = now() - start;
    if (waited > patience) {  // somebody else wants a core: do with fewer workers for a while, longer each time
        backoff_ns_ = std::min(backoff_ns_ ? backoff_ns_ * 2 : kBackoff, kMostBackoff);
        active_ = 1;
        retry_at_ = now() + backoff_ns_;
    } else if (backoff_ns_ && now() > retry_at_ + 2 * backoff_ns_) {
        backoff_ns_ = 0;
    }
}

}  // namespace genmote

#include "spill.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <system_error>

namespace genmote {
namespace {
std::string told(const std::string& folder, const char* what, int error) {
    std::string reason = error == ENOSPC ? "the disk is full" : error == EDQUOT ? "the quota is used up" : std::strerror(error);
    return folder + ": the KV cache's cold rows could not be " + what + " (" + reason + "); give --kv-spill another folder, or leave it out";
}
}  // namespace

Spill::Spill(const std::string& folder, uint8_t* base) : folder_(folder), base_(base), owner_(getpid()) {
    void* p = mmap(nullptr, sizeof *forgotten_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    forgotten_ = new (p) std::atomic<uint64_t>(0);
    std::string name = folder + "/kv-XXXXXX";
    file_ = mkostemp(name.data(), O_CLOEXEC);
    if (file_ < 0) {
        const int error = errno;
        munmap(forgotten_, sizeof *forgotten_);
        throw SpillError(told(folder, "written", error));
    }
    unlink(name.c_str());  // the space is free again when the file is closed, also after a crash
#ifdef O_DIRECT
    const int flags = fcntl(file_, F_GETFL);
    fcntl(file_, F_SETFL, flags | O_DIRECT);  // past the page cache, where the file system can
    alignas(kBlock) static thread_local uint8_t page[kBlock];
    if (pwrite(file_, page, kBlock, 0) != static_cast<ssize_t>(kBlock)) fcntl(file_, F_SETFL, flags);
#endif
    try {
        thread_ = std::thread([this] { work(); });
    } catch (const std::system_error&) {
        leave();
        throw SpillError(folder + ": no thread can be started to read the KV cache's cold rows; end other programs, or leave --kv-spill out");
    }
}

Spill::~Spill() {
    {
        std::lock_guard<std::mutex> hold(lock_);
        stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
    leave();
}

void Spill::leave() {
    close(file_);
    munmap(forgotten_, sizeof *forgotten_);
}

bool Spill::inherited() const { return getpid() != owner_; }

void Spill::forget() {
    if (inherited()) return;
    seen_ = forgotten_->fetch_add(1) + 1;
}

// The file is one for a process and those that were forked from it.
void Spill::check() const {
    if (inherited() && *forgotten_ != seen_)
        throw SpillError(folder_ + ": the KV cache's cold rows were changed by the process that this one was forked from; begin the text anew here");
}

void Spill::write(const Range& r) {
    if (inherited())
        throw SpillError(folder_ + ": the KV cache's cold rows belong to the process that this one was forked from; begin the text anew here");
    for (size_t done = 0; done < r.bytes;) {
        const ssize_t n = pwrite(file_, r.at + done, r.bytes - done, r.at + done - base_);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) throw SpillError(told(folder_, "written", n < 0 ? errno : ENOSPC));
        done += static_cast<size_t>(n);
        written_ += static_cast<uint64_t>(n);
    }
}

void Spill::read(const Range& r) {
    for (size_t done = 0; done < r.bytes;) {
        const ssize_t n = pread(file_, r.at + done, r.bytes - done, r.at + done - base_);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) throw SpillError(told(folder_, "read", n < 0 ? errno : EIO));
        done += static_cast<size_t>(n);
        read_ += static_cast<uint64_t>(n);
    }
    check();
}

void Spill::read_ahead(std::vector<Range> ranges) {
    std::lock_guard<std::mutex> hold(lock_);
    wanted_ = std::move(ranges);
    busy_ = true;
    changed_.notify_all();
}

void Spill::finish() {
    std::unique_lock<std::mutex> hold(lock_);
    changed_.wait(hold, [&] { return !busy_; });
    if (failed_.empty()) return;
    const std::string why = std::move(failed_);
    failed_.clear();
    throw SpillError(why);
}

void Spill::work() {
    std::unique_lock<std::mutex> hold(lock_);
    for (;;) {
        changed_.wait(hold, [&] { return stop_ || busy_; });
        if (stop_) return;
        const std::vector<Range> ranges = std::move(wanted_);
        hold.unlock();
        std::string failed;
        try {
            for (const Range& r : ranges) read(r);
        } catch (const SpillError& error) {
            failed = error.what();
        }
        hold.lock();
        failed_ = failed;
        busy_ = false;
        changed_.notify_all();
    }
}

}  // namespace genmote

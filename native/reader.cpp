#include "reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>
#include <utility>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#ifndef O_DIRECT
#define O_DIRECT 0
#endif

namespace genmote {
namespace {

constexpr int64_t kPiece = 2 << 20;  // what one thread reads at once: several threads share a large read, and a huge page takes it as one request
constexpr auto kLook = std::chrono::milliseconds(50);

struct Living {
    std::mutex mutex;
    std::vector<Reader*> readers;
};
Living& living() {
    static Living* l = new Living;  // never destroyed: a process may still fork while it exits
    return *l;
}

int open_file(const std::string& path, int flags) {
    int file;
    do file = open(path.c_str(), O_RDONLY | O_CLOEXEC | flags);
    while (file < 0 && errno == EINTR);
    return file;
}

bool stamp_of(int file, Reader::Stamp* out) {
    struct stat s;
    if (fstat(file, &s) != 0) return false;
#if defined(__APPLE__)
    const auto& t = s.st_mtimespec;
#else
    const auto& t = s.st_mtim;
#endif
    *out = {static_cast<uint64_t>(s.st_dev), static_cast<uint64_t>(s.st_ino), static_cast<int64_t>(s.st_size), t.tv_sec * 1'000'000'000ll + t.tv_nsec};
    return true;
}

}  // namespace

#if defined(__unix__) || defined(__APPLE__)
// As the library is loaded, thus before any Pool registers: a fork then waits for a pool's work, which may wait for reads, before it
// stops the readers.
const int Reader::registered_ = pthread_atfork(before_fork, [] { after_fork(false); }, [] { after_fork(true); });
#endif

Reader::Reader(std::string name, int threads, bool direct) : path(std::move(name)), direct_(direct && O_DIRECT), threads_(std::max(1, threads)) {
    buffered_ = open_file(path, 0);
    if (buffered_ < 0) throw ReadError(path + ": cannot be opened (" + std::strerror(errno) + "); check the path");
    if (direct_) file_ = open_file(path, O_DIRECT);
    if (file_ < 0) direct_ = false;
    // The two opens must have found one file.
    Stamp other;
    if (!stamp_of(buffered_, &stamp_) || (file_ >= 0 && (!stamp_of(file_, &other) || !(other == stamp_)))) {
        close(buffered_);
        if (file_ >= 0) close(file_);
        throw ReadError(path + ": changed while it was opened; try again");
    }
    flying_.resize(static_cast<size_t>(threads_));
    std::lock_guard<std::mutex> lock(living().mutex);
    living().readers.push_back(this);
}

Reader::~Reader() {
    {
        std::lock_guard<std::mutex> lock(living().mutex);
        auto& readers = living().readers;
        readers.erase(std::find(readers.begin(), readers.end(), this));
    }
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
        queue_.clear();
    }
    work_.notify_all();
    for (auto& w : workers_) w.join();
    close(buffered_);
    if (file_ >= 0) close(file_);
}

// A child has none of the threads: it forgets them, and takes up anew what they were reading.
void Reader::before_fork() {
    living().mutex.lock();
    for (Reader* r : living().readers) r->mutex_.lock();
}

void Reader::after_fork(bool child) {
    for (Reader* r : living().readers) {
        if (child && !r->workers_.empty()) {
            new std::vector<std::thread>(std::move(r->workers_));  // there is nobody to join: left alone for good
            r->workers_.clear();
            new (&r->work_) std::condition_variable;  // the parent's threads sleep on the old ones
            new (&r->done_) std::condition_variable;
            for (Piece& p : r->flying_)
                if (p.ticket) r->queue_.push_front(std::exchange(p, Piece{}));
        }
        r->mutex_.unlock();
    }
    living().mutex.unlock();
}

uint64_t Reader::submit(int64_t offset, size_t n, uint8_t* to, int priority) {
    const int64_t end = offset + static_cast<int64_t>(n), first = offset / kBlock * kBlock;
    if (offset < 0 || end > stamp_.size) throw ReadError(fault(offset, "the file ends at " + std::to_string(stamp_.size)));
    std::lock_guard<std::mutex> lock(mutex_);
    if (workers_.empty()) start();
    const uint64_t ticket = next_++;
    Ticket& made = tickets_[ticket];
    std::vector<Piece> pieces;
    const int64_t all = static_cast<int64_t>(room(offset, n)), count = (all + kPiece - 1) / kPiece;
    const int64_t each = ((all + count - 1) / count + kBlock - 1) / kBlock * kBlock;  // alike: a small rest would cost as much as a whole one
    for (int64_t begin = first; begin < end; begin += each) {
        const int64_t stop = std::min(first + all, begin + each);
        pieces.push_back({ticket, begin, stop, std::min(stop, end), to + (begin - first), priority});
    }
    made.left = static_cast<int>(pieces.size());
    enqueue(pieces, priority);
    work_.notify_all();
    return ticket;
}

// Behind what has this priority already.
void Reader::enqueue(const std::vector<Piece>& pieces, int priority) {
    auto at = std::upper_bound(queue_.begin(), queue_.end(), priority, [](int p, const Piece& q) { return p < q.priority; });
    queue_.insert(at, pieces.begin(), pieces.end());
}

std::vector<Reader::Piece> Reader::dequeue(uint64_t ticket) {
    std::vector<Piece> pieces;
    for (const Piece& p : queue_)
        if (p.ticket == ticket) pieces.push_back(p);
    queue_.erase(std::remove_if(queue_.begin(), queue_.end(), [&](const Piece& p) { return p.ticket == ticket; }), queue_.end());
    return pieces;
}

void Reader::hasten(uint64_t ticket, int priority) {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Piece> pieces = dequeue(ticket);
    for (Piece& p : pieces) p.priority = priority;
    enqueue(pieces, priority);
}

bool Reader::withdraw(uint64_t ticket) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = tickets_.find(ticket);
    if (found == tickets_.end()) return false;
    const auto waiting = std::count_if(queue_.begin(), queue_.end(), [&](const Piece& p) { return p.ticket == ticket; });
    if (!found->second.left || found->second.left != waiting) return false;
    dequeue(ticket);
    tickets_.erase(found);
    return true;
}

void Reader::start() {
    for (int i = 0; i < threads_; i++) {
        try {
            workers_.emplace_back([this, i] { work(static_cast<size_t>(i)); });
        } catch (const std::system_error&) {  // no more threads to be had
            if (!i) throw ReadError(path + ": no thread can be started to read it; end other programs");  // the next read tries again
            break;
        }
    }
}

void Reader::wait(uint64_t ticket, const std::function<void()>& waiting) {
    std::unique_lock<std::mutex> lock(mutex_);
    auto found = tickets_.find(ticket);
    if (found == tickets_.end()) throw std::invalid_argument("no such read is under way");
    Ticket* t = &found->second;  // other reads may come meanwhile, which move no ticket
    if (t->left) {
        if (workers_.empty()) start();  // a forked child
        const auto begin = std::chrono::steady_clock::now();
        auto look = begin + kLook;
        while (t->left) {
            done_.wait_until(lock, look);
            if (std::chrono::steady_clock::now() < look) continue;
            look += kLook;
            if (!waiting) continue;
            lock.unlock();
            waiting();
            lock.lock();
            found = tickets_.find(ticket);
            if (found == tickets_.end()) throw std::invalid_argument("the read was cancelled");
            t = &found->second;
        }
        waited_ns_ += static_cast<uint64_t>(std::chrono::nanoseconds(std::chrono::steady_clock::now() - begin).count());
    }
    const std::string fault = std::move(t->fault);
    tickets_.erase(ticket);
    if (!fault.empty()) throw ReadError(fault);
}

bool Reader::done(uint64_t ticket) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = tickets_.find(ticket);
    return found == tickets_.end() || found->second.left == 0;
}

void Reader::cancel(uint64_t ticket) {
    std::unique_lock<std::mutex> lock(mutex_);
    auto found = tickets_.find(ticket);
    if (found == tickets_.end()) return;
    found->second.left -= static_cast<int>(dequeue(ticket).size());
    done_.wait(lock, [&] { return tickets_.at(ticket).left == 0; });
    tickets_.erase(ticket);
}

void Reader::check() {
    if (std::string why = changed(); !why.empty()) throw ReadError(why);
}

std::string Reader::changed() const {
    Stamp now;
    if (!stamp_of(buffered_, &now)) return fault(0, std::strerror(errno));
    if (now == stamp_) return "";
    return path + ": changed while its weights were being read (" + std::to_string(stamp_.size) + " bytes, now " + std::to_string(now.size) +
           "); load the model again";
}

std::string Reader::fault(int64_t at, const std::string& why) const {
    return path + ": cannot be read at byte " + std::to_string(at) + " (" + why + "); check the disk, then make the file again (genmote pack)";
}

void Reader::work(size_t id) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        work_.wait(lock, [&] { return stop_ || !queue_.empty(); });
        if (stop_) return;
        const Piece piece = flying_[id] = queue_.front();
        queue_.pop_front();
        lock.unlock();
        const std::string fault = read(piece);
        lock.lock();
        flying_[id] = Piece{};
        finish(piece.ticket, fault);
    }
}

void Reader::finish(uint64_t ticket, const std::string& fault) {
    Ticket& t = tickets_.at(ticket);
    if (t.fault.empty()) t.fault = fault;
    if (--t.left == 0) done_.notify_all();
}

std::string Reader::read(const Piece& p) {
    int64_t at = p.begin;
    while (at < p.need) {
        const bool direct = direct_;
        const ssize_t n = pread(direct ? file_ : buffered_, p.to + (at - p.begin), static_cast<size_t>(p.end - at), at);
        if (n < 0) {
            if (errno == EINTR) continue;
            if (errno == EINVAL && direct) {  // the file system took the flag and refuses the reads
                direct_ = false;
                continue;
            }
            return fault(at, std::strerror(errno));
        }
        bytes_read_ += static_cast<uint64_t>(n);
#if defined(POSIX_FADV_DONTNEED)
        if (!direct) posix_fadvise(buffered_, at, n, POSIX_FADV_DONTNEED);
#endif
        // A short unbuffered read may end at an odd place, where the next one cannot begin.
        const int64_t stop = at + n, next = direct && stop < p.need ? stop / kBlock * kBlock : stop;
        if (next == at) break;
        at = next;
    }
    // After the read: whoever writes to a file changes its time first.
    if (std::string why = changed(); !why.empty()) return why;
    if (at < p.need) return fault(at, "the file ends there");
    return "";
}

}  // namespace genmote

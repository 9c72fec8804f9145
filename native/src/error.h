// Every error is a code and a message; module.cpp turns it into a Python exception.
#pragma once
#include <stdexcept>
#include <string>

namespace aos {

class Error : public std::runtime_error {
 public:
  Error(const char* code, const std::string& message) : std::runtime_error(message), code_(code) {}
  const char* code() const { return code_; }

 private:
  const char* code_;
};

}  // namespace aos

/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_AGENT_COMMAND_H
#define FERRY_AGENT_COMMAND_H

#include "agent/options.h"

/* Exit codes, a contract: Documentation/man/ferry.1. */
#define FERRY_EXIT_DONE 0
#define FERRY_EXIT_FAILED 1
#define FERRY_EXIT_USAGE 2
#define FERRY_EXIT_PERSON 3

/* The commands, one file each; each gets the words after its name and returns the exit code. */
int ferry_command_send(const struct ferry_args *args);
int ferry_command_recv(const struct ferry_args *args);
int ferry_command_save(const struct ferry_args *args);
int ferry_command_restore(const struct ferry_args *args);
int ferry_command_inspect(const struct ferry_args *args);
int ferry_command_cpr(const struct ferry_args *args);
int ferry_command_list(const struct ferry_args *args);
int ferry_command_status(const struct ferry_args *args);
int ferry_command_cancel(const struct ferry_args *args);
int ferry_command_continue(const struct ferry_args *args);
int ferry_command_postcopy(const struct ferry_args *args);
int ferry_command_pause(const struct ferry_args *args);
int ferry_command_spill(const struct ferry_args *args);
int ferry_command_set(const struct ferry_args *args);
int ferry_command_recover(const struct ferry_args *args);
int ferry_command_resume(const struct ferry_args *args);
int ferry_command_monitor(const struct ferry_args *args);
int ferry_command_doctor(const struct ferry_args *args);

#endif

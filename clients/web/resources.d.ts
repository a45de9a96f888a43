// Written by `chatserver schema` from what the server's routes answer.

import type { ReasoningPart, TextPart, ToolCallPart, Usage } from "./events.js";

/** The models that a request may name, the default first. */
export interface ModelList {
  models: ModelResource[];
}

/** A model that a request may name; `is_default`: it answers where a request names none. */
export interface ModelResource {
  model: string;
  is_default: boolean;
}

/** A run, as `GET /chat/runs/{run_id}` shows it. Times are RFC 3339 in UTC. */
export interface RunResource {
  run_id: string;
  session_id: string;
  message_id: string;
  status: "cancelled" | "completed" | "failed" | "running" | "waiting";
  last_seq: number;
  usage: Usage | null;
  created_at: string;
  finished_at: string | null;
  error: RunFailure | null;
}

/** Why a run failed, as in its `error` event. */
export interface RunFailure {
  code: "auth_failed" | "context_length" | "internal" | "interrupted" | "llm_error" | "rate_limited" | "upstream_timeout" | "upstream_truncated" | "upstream_unavailable";
  message: string;
}

/** A session with a page of messages of its newest branch, or of all, oldest first. `cursor` asks for the page of older messages, null: there are none. */
export interface SessionDetail {
  session_id: string;
  title: string;
  created_at: string;
  updated_at: string;
  active_run_id: string | null;
  messages: MessageResource[];
  cursor: string | null;
}

/** One message of a session; `parent_id` is the message it follows, so that branches form a tree. `content` is the text parts, joined. `finish_reason` is that of the answer's `done`; null: no answer, one that is being written, or one that failed. */
export interface MessageResource {
  message_id: string;
  parent_id: string | null;
  role: "assistant" | "user";
  content: string;
  parts: (TextPart | ReasoningPart | ToolCallPart | ImagePart | FilePart)[];
  status: "complete" | "partial" | "streaming";
  finish_reason: "cancelled" | "content_filter" | "length" | "stop" | "turn_limit" | null;
  run_id: string | null;
  usage: Usage | null;
  created_at: string;
}

/** An image of a user: its address, or itself in base64 (`data`) with its media type. */
export interface ImagePart {
  type: "image";
  url: string | null;
  data: string | null;
  media_type: string | null;
}

/** A file of a user, under its name: its address, or itself in base64 (`data`) with its media type. */
export interface FilePart {
  type: "file";
  name: string;
  url: string | null;
  data: string | null;
  media_type: string | null;
}

/** Sessions, newest first; `cursor` asks for the next page, null: there is none. */
export interface SessionPage {
  sessions: SessionResource[];
  cursor: string | null;
}

/** A session in a list. */
export interface SessionResource {
  session_id: string;
  title: string;
  created_at: string;
  updated_at: string;
  active_run_id: string | null;
}

/** What `POST /chat/tickets` answers; `expires_in` is in seconds. */
export interface Ticket {
  ticket: string;
  expires_in: number;
}

/** A refusal (RFC 9457); `code` is for programs. */
export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  code: string;
  errors?: FieldProblem[] | undefined;
  run_id?: string | undefined;
  retry_after?: number | undefined;
}

/** A wrong field: where it is (RFC 6901), and what is wrong. */
export interface FieldProblem {
  pointer: string;
  detail: string;
}
